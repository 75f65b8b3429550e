//! What the guestbook answers: synchronous Diesel, in an r2d2 pool, as with a plain `PgConnection`.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool};
use diesel_replicated::{ErrorExt, Outcome, SyncConnection};
use percent_encoding::percent_decode_str;
use tiny_http::{Header, Method, Request, Response, Server};

diesel::table! { entries (id) { id -> Integer, text -> Text, } }

/// The whole difference to an application on one server.
type Conn = SyncConnection;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS entries (id SERIAL PRIMARY KEY, text TEXT NOT NULL)";

/// The longest text of an entry, and of a form.
const LONGEST: u64 = 2_000;

/// What a request is answered with.
struct Answer {
    status: u16,
    body: String,
    headers: Vec<(&'static str, String)>,
}

#[derive(Clone)]
pub(crate) struct Guestbook {
    pub(crate) pool: Pool<ConnectionManager<Conn>>,
}

impl Guestbook {
    /// Waits for the servers up to `wait`, as each request waits for a connection.
    pub(crate) fn open(url: &str, size: u32, wait: Duration) -> Result<Self, Failure> {
        // r2d2 would try again and again, and tell no more than that it took too long.
        Conn::establish(url)?.batch_execute(TABLE)?;
        let builder = Pool::builder().max_size(size).connection_timeout(wait);
        let pool = builder.build(ConnectionManager::new(url))?;
        Ok(Self { pool })
    }

    fn answer(&self, request: &mut Request) -> Answer {
        let result = match (request.method(), request.url()) {
            (Method::Get, "/") => self.list(),
            (Method::Post, "/") => match text_of(request) {
                Some(text) => self.sign(&text),
                None => return Answer::text(422, "an entry has 1 to 2000 bytes of text"),
            },
            (_, "/") => return Answer::text(405, "GET or POST"),
            _ => return Answer::text(404, "there is only one page: /"),
        };
        result.unwrap_or_else(|error| error.answer())
    }

    fn list(&self) -> Result<Answer, Failed> {
        let mut conn = self.pool.get()?;
        let newest = entries::table.order(entries::id.desc()).limit(50);
        let texts: Vec<String> = newest.select(entries::text).load(&mut conn)?;
        let items = texts.iter().map(|text| format!("<li>{}", escaped(text)));
        let body = format!(
            "<!doctype html><title>Guestbook</title><h1>Guestbook</h1>\
             <form method=post><input name=text required autofocus><button>Sign</button></form>\
             <ol reversed>{}</ol><footer>served by {}</footer>",
            items.collect::<String>(),
            escaped(&route(&conn)),
        );
        let headers = vec![
            ("content-type", "text/html; charset=utf-8".to_owned()),
            ("x-served-by", route(&conn)),
        ];
        Ok(Answer {
            status: 200,
            body,
            headers,
        })
    }

    fn sign(&self, text: &str) -> Result<Answer, Failed> {
        let mut conn = self.pool.get()?;
        let entry = diesel::insert_into(entries::table).values(entries::text.eq(text));
        entry.execute(&mut conn)?;
        // The next request has another connection, and reads this entry: on a replica that has it.
        let headers = vec![("location", "/".to_owned()), ("x-served-by", route(&conn))];
        Ok(Answer {
            status: 303,
            body: String::new(),
            headers,
        })
    }
}

/// Why a request was not answered.
enum Failed {
    /// No connection was free in time.
    Full,
    Statement(diesel::result::Error),
}

impl From<diesel::r2d2::PoolError> for Failed {
    fn from(_: diesel::r2d2::PoolError) -> Self {
        Self::Full
    }
}

impl From<diesel::result::Error> for Failed {
    fn from(error: diesel::result::Error) -> Self {
        Self::Statement(error)
    }
}

impl Failed {
    fn answer(&self) -> Answer {
        match self {
            Self::Full => Answer::text(503, "too many requests at once: try again later"),
            Self::Statement(error) if error.outcome() == Outcome::NotRun => Answer::text(
                503,
                "the database is away: nothing was done, try again later",
            ),
            Self::Statement(_) => Answer::text(500, "the database failed"),
        }
    }
}

impl Answer {
    fn text(status: u16, body: &str) -> Self {
        Self {
            status,
            body: body.to_owned(),
            headers: Vec::new(),
        }
    }

    fn send(self, request: Request) {
        let mut response = Response::from_string(self.body).with_status_code(self.status);
        for (name, value) in self.headers {
            if let Ok(header) = Header::from_bytes(name, value) {
                response = response.with_header(header);
            }
        }
        // Whoever asked may have gone.
        let _ = request.respond(response);
    }
}

/// Which node served the last statement, and why.
fn route(conn: &Conn) -> String {
    conn.last_route()
        .map_or_else(String::new, |route| route.to_string())
}

/// The field `text` of a form.
fn text_of(request: &mut Request) -> Option<String> {
    let mut form = String::new();
    let mut body = request.as_reader().take(3 * LONGEST + 5);
    body.read_to_string(&mut form).ok()?;
    let text = form.strip_prefix("text=")?.replace('+', " ");
    let text = percent_decode_str(&text).decode_utf8().ok()?;
    let text = text.trim();
    let fits = !text.is_empty() && text.len() as u64 <= LONGEST && !text.contains('\0');
    fits.then(|| text.to_owned())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Threads that answer requests.
pub(crate) struct Serving {
    server: Arc<Server>,
    threads: Vec<JoinHandle<()>>,
}

impl Serving {
    pub(crate) fn start(
        address: &str,
        guestbook: &Guestbook,
        threads: usize,
    ) -> Result<Self, Failure> {
        let server = Arc::new(Server::http(address)?);
        let threads = (0..threads).map(|_| {
            let (server, guestbook) = (Arc::clone(&server), guestbook.clone());
            std::thread::spawn(move || {
                while let Ok(mut request) = server.recv() {
                    guestbook.answer(&mut request).send(request);
                }
            })
        });
        let threads = threads.collect();
        Ok(Self { server, threads })
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.server.server_addr().to_ip()
    }

    /// Lets the requests that are being answered end.
    pub(crate) fn stop(self) {
        for _ in &self.threads {
            self.server.unblock();
        }
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}
