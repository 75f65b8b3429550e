//! The live page in a real browser: Chromium, driven through its own protocol, if there is one.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::Blog;

const PATIENCE: Duration = Duration::from_secs(60);

/// Each node of the page: its name, its role, how it is, and whose card it is below.
const NODES: &str = "[...document.querySelectorAll('.card')].map(card => [
    card.querySelector('h3').textContent,
    card.querySelector('.node').textContent,
    card.querySelector('.pill').textContent,
    card.parentElement.parentElement.closest('li')?.querySelector('h3').textContent ?? ''
].join(' ')).join(', ')";

/// A browser with one page open.
struct Browser {
    process: Child,
    commands: ChildStdin,
    answers: Receiver<Value>,
    session: Option<String>,
    sent: u64,
    /// What the page has complained of.
    complaints: Vec<String>,
    profile: PathBuf,
}

impl Browser {
    /// None if there is no browser, or what is there is not one.
    fn start() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let program = std::env::split_paths(&path)
            .flat_map(|folder| names.map(|name| folder.join(name)))
            .find(|program| program.is_file())?;
        // Each browser has its own, also of those that one program runs at once.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let place = NEXT.fetch_add(1, Ordering::Relaxed);
        let profile = format!("diesel-replicated-browser-{}-{place}", std::process::id());
        let profile = std::env::temp_dir().join(profile);
        // It takes commands from its descriptor 3, and answers on 4.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"])
            .arg(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let commands = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                let _ = sender.send(serde_json::from_slice(&message).unwrap());
            }
        });
        let mut browser = Self {
            process,
            commands,
            answers,
            session: None,
            sent: 0,
            complaints: Vec::new(),
            profile,
        };
        browser.ask("Browser.getVersion", &json!({}))?;
        Some(browser)
    }

    /// None if the browser has ended.
    fn ask(&mut self, method: &str, params: &Value) -> Option<Value> {
        self.sent += 1;
        let mut command = json!({ "id": self.sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        self.commands
            .write_all(format!("{command}\0").as_bytes())
            .ok()?;
        loop {
            let answer = self.answers.recv_timeout(PATIENCE).ok()?;
            let params = &answer["params"];
            match answer["method"].as_str() {
                Some("Runtime.exceptionThrown") => self.complaints.push(params.to_string()),
                Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                    self.complaints.push(params.to_string());
                }
                _ => {}
            }
            if answer["id"] == self.sent {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return Some(answer["result"].clone());
            }
        }
    }

    fn open(&mut self, url: &str) {
        let blank = json!({ "url": "about:blank" });
        let page = self.ask("Target.createTarget", &blank).unwrap();
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let session = self.ask("Target.attachToTarget", &attach).unwrap();
        self.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime.enable", "Log.enable"] {
            self.ask(domain, &json!({})).unwrap();
        }
        // A page that nobody looks at rests.
        let looked_at = json!({ "enabled": true });
        self.ask("Emulation.setFocusEmulationEnabled", &looked_at)
            .unwrap();
        self.ask("Page.navigate", &json!({ "url": url })).unwrap();
    }

    fn evaluate(&mut self, script: &str) -> Value {
        let params = json!({ "expression": script, "returnByValue": true });
        let answer = self.ask("Runtime.evaluate", &params).unwrap();
        answer["result"]["value"].clone()
    }

    fn wait_for(&mut self, script: &str, expected: &str) {
        let start = Instant::now();
        loop {
            let found = self.evaluate(script);
            if found == expected {
                return;
            }
            let late = start.elapsed() > PATIENCE;
            let page = match late {
                true => self.evaluate("document.body.innerText"),
                false => Value::Null,
            };
            assert!(!late, "{script}: {found}; {:?}\n{page}", self.complaints);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn press(&mut self, node: &str, label: &str) {
        let script = format!(
            "[...document.querySelectorAll('.card')]
                .find(card => card.querySelector('h3').textContent === '{node}')
                .querySelectorAll('button').forEach(button => {{
                    if (button.textContent === '{label}' && !button.hidden) button.click();
                }})"
        );
        self.evaluate(&script);
    }

    /// A button that belongs to no node.
    fn press_outside(&mut self, label: &str) {
        self.evaluate(&format!(
            "[...document.querySelectorAll('#story button')]
                .find(button => button.textContent === '{label}').click()"
        ));
    }

    /// Nothing is wider than a window of this width.
    fn fits(&mut self, width: u32) {
        let size =
            json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        self.ask("Emulation.setDeviceMetricsOverride", &size)
            .unwrap();
        let page = "[document.documentElement].map(page => page.scrollWidth - page.clientWidth)[0]";
        assert_eq!(self.evaluate(page), 0, "wider than {width}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.session = None;
        // It ends its own processes better than anybody else could.
        if self.ask("Browser.close", &json!({})).is_none() {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

fn switch_the_routing(browser: &mut Browser) {
    let press = |label: &str| {
        format!(
            "[...document.querySelectorAll('#routing-buttons button')]
                .find(button => button.textContent === '{label}').click()"
        )
    };
    let mode = "document.getElementById('routing-text').textContent.split('.')[0]";
    browser.wait_for(mode, "Routing: automatic");
    browser.evaluate(&press("Observe"));
    browser.wait_for(mode, "Routing: observe");
    let pressed = "document.querySelector('#routing-buttons [aria-pressed=true]').textContent";
    browser.wait_for(pressed, "Observe");
    browser.fits(390);
    browser.evaluate(&press("All"));
    browser.wait_for(mode, "Routing: automatic");
}

/// Each outage with its button, and of the plain side what must be seen there.
const OUTAGES: [(&str, &str); 4] = [
    ("A replica freezes", "errors"),
    ("The old primary comes back", "lost_rows"),
    ("All replicas fall behind", "stale_reads"),
    ("The primary dies under load", "errors"),
];

/// Presses it, and sees that this pool does what it promises while the plain pools do not.
fn press_the_outage(browser: &mut Browser, label: &str, figure: &str) {
    browser.press_outside(label);
    let on = "document.querySelector('#outages [aria-pressed=true]')?.textContent ?? ''";
    browser.wait_for(on, label);
    browser.wait_for(
        "document.getElementById('since').textContent",
        &format!("Since “{label}” was pressed"),
    );
    let seen = format!(
        "(document.querySelector('[data-figure=plain-{figure}]').dataset.state === 'bad') + ''"
    );
    browser.wait_for(&seen, "true");
    let ours = "['stale_reads', 'replaced_writes', 'lost_rows'].map(figure =>
        document.querySelector(`[data-figure=ours-${figure}]`).textContent).join(' ')";
    assert_eq!(browser.evaluate(ours), "0 0 0", "{label}");
    browser.press_outside("Back to normal");
    let said = "document.getElementById('story-said').textContent";
    browser.wait_for(
        said,
        &format!("Back to normal. The last outage was: {label}"),
    );
    let up = "document.querySelectorAll('.tree > li > .card, .tree ul > li > .card').length
        + ' ' + document.querySelectorAll('.card .pill[data-state=good]').length";
    browser.wait_for(up, "3 3");
}

/// Opens the page and looks at it. Nothing happens where there is no browser.
#[allow(clippy::print_stderr, reason = "whoever runs the tests should know")]
async fn look_at(look: impl FnOnce(&mut Browser, &Blog) + Send + 'static) {
    let Some(mut browser) = tokio::task::spawn_blocking(Browser::start).await.unwrap() else {
        eprintln!("skipped: there is no Chromium");
        return;
    };
    let blog = Blog::own().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/status/live", listener.local_addr().unwrap());
    let router = blog.router.clone();
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let look = tokio::task::spawn_blocking(move || {
        browser.open(&url);
        look(&mut browser, &blog);
    });
    look.await.unwrap();
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_page_shows_each_outage_beside_plain_pools() {
    look_at(|browser, _| {
        browser.wait_for(
            "document.querySelectorAll('#outages button').length + ''",
            "4",
        );
        for width in [390, 1280] {
            browser.fits(width);
        }
        for (label, figure) in OUTAGES {
            press_the_outage(browser, label, figure);
            browser.fits(390);
        }
        let lines = "['moves', 'waits', 'lags'].every(id =>
            document.querySelector(`#${id} path[d^=M]`)) + ''";
        browser.wait_for(lines, "true");
        assert_eq!(browser.complaints, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_page_shows_what_happens() {
    look_at(|browser, blog| {
        let before =
            "primary primary up , replica-1 replica up primary, replica-2 replica up primary";
        browser.wait_for(NODES, before);
        browser.fits(390);
        browser.fits(1200);
        browser.press("replica-2", "Pause replay");
        browser.wait_for(
            "document.querySelectorAll('.pill[data-state=fair]').length + ''",
            "1",
        );
        browser.press("replica-2", "Resume replay");
        browser.wait_for(NODES, before);

        switch_the_routing(browser);

        browser.press("primary", "Kill");
        let banner = "document.getElementById('banner').textContent";
        browser.wait_for(banner, "Nothing can be written now. Reads go on.");
        browser.press("replica-1", "Promote");
        browser.wait_for(banner, "");
        browser.wait_for(
            NODES,
            "replica-1 primary up , replica-2 replica up replica-1, \
             primary not in use down, not running ",
        );
        browser.press("primary", "Start");
        browser.wait_for(
            NODES,
            "replica-1 primary up , primary replica up replica-1, \
             replica-2 replica up replica-1",
        );
        browser.wait_for(
            "document.getElementById('log').textContent.includes(
                'replica-1 takes the writes on timeline 2') + ''",
            "true",
        );
        assert_eq!(browser.complaints, Vec::<String>::new());
        blog.stop.send_replace(true);
        let connection = "document.getElementById('connection').textContent";
        browser.wait_for(connection, "not connected; trying again");
    })
    .await;
}
