//! The blog in two places.

use super::*;

#[path = "../../examples/blog/groups/mod.rs"]
pub(crate) mod places;

use places::World;

struct Oceans {
    router: Router,
    world: Arc<World>,
    cookie: String,
}

impl Oceans {
    async fn ask(&mut self, request: request::Builder, body: &str) -> (StatusCode, String) {
        let request = request.header(header::COOKIE, &self.cookie);
        let form = "application/x-www-form-urlencoded";
        let request = request.header(header::CONTENT_TYPE, form);
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let answer = self.router.clone().oneshot(request).await.unwrap();
        if let Some(cookie) = answer.headers().get(header::SET_COOKIE) {
            let cookie = cookie.to_str().unwrap().split(';').next().unwrap();
            cookie.clone_into(&mut self.cookie);
        }
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn page(&mut self, place: &str) -> String {
        let request = Request::get(format!("/?from={place}"));
        let (status, page) = self.ask(request, "").await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page
    }

    async fn post(&mut self, path: &str, form: &str) {
        let (status, page) = self.ask(Request::post(path), form).await;
        assert_eq!(status, StatusCode::SEE_OTHER, "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_two_places_users_are_written_at_home_and_read_near() {
    let world = World::start().await.unwrap();
    let router = places::router(Arc::clone(&world));
    let cookie = String::new();
    let mut oceans = Oceans {
        router,
        world,
        cookie,
    };
    // Grace is at home in us.
    oceans
        .post("/posts", "from=eu&user=3&title=Over+the+ocean")
        .await;
    let page = oceans.page("eu").await;
    assert!(
        page.contains("Over the ocean") && page.contains("us-primary"),
        "{page}"
    );
    assert!(page.contains("eu-"), "it is read near: {page}");
    assert!(oceans.page("us").await.contains("Over the ocean"));
    oceans.post("/cable", "from=eu&on=true").await;
    oceans.post("/posts", "from=eu&user=2&title=At+home").await;
    oceans.post("/posts", "from=eu&user=3&title=Cannot").await;
    let page = oceans.page("eu").await;
    assert!(
        page.contains("At home") && !page.contains("Cannot</li>"),
        "{page}"
    );
    assert!(
        page.contains("no node is known to be the primary") || page.contains("lost"),
        "{page}"
    );
    oceans.post("/cable", "from=eu&on=false").await;
    let at_home = "<td>Grace</td><td>eu</td>";
    while !oceans.page("eu").await.contains(at_home) {
        oceans.post("/moves", "from=eu&user=3&to=eu").await;
    }
    oceans.post("/posts", "from=eu&user=3&title=Moved").await;
    let page = oceans.page("eu").await;
    assert!(
        page.contains("Moved") && page.contains("eu-primary"),
        "{page}"
    );
    let Oceans { router, world, .. } = oceans;
    drop(router);
    world.close().await;
}
