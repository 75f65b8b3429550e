//! A drawing of the tables: bars that stretch with the page, and text that does not.

use maud::html;

use crate::SEVERAL;
use crate::report::table;
use crate::rounds::{Row, Table};
use crate::ways::{Flavour, Way, Work};

/// The page of the guide gives its own colour to the text, so that its themes hold. Elsewhere the reader's system says
/// whether it is dark.
const STYLE: &str = "\
.peers{--ink:#1c1c1c;max-width:48em}\
@media(prefers-color-scheme:dark){.peers{--ink:#dddddd}}\
.peers text{fill:var(--main-color,var(--ink));font:13px sans-serif}\
.peers .head{font-weight:bold;font-size:14px}\
.peers .pool{fill:#4a89c8}\
.peers .proxy{fill:#8b8f97}\
.peers .ours{fill:#d57a0b}\
.peers .second{fill-opacity:.5}";

/// The widest bar, in hundredths of the page: the rest is for its figure.
const WIDEST: f64 = 72.0;
const HEAD: usize = 34;
const LINE: usize = 34;
const GAP: usize = 10;

/// Some bars that share a scale.
struct Panel<'a> {
    head: String,
    table: &'a Table,
    /// The parts of a bar.
    parts: fn(&Row) -> [f64; 2],
}

fn panels(tables: &[Table]) -> [Panel<'_>; 3] {
    let flavour = Flavour::MultiThread;
    let several = SEVERAL[0];
    [
        Panel {
            head: "Latency of one row, one task: median, µs".to_owned(),
            table: table(tables, Work::Read, 1, flavour),
            parts: |row| [row.latency[0], 0.0],
        },
        Panel {
            head: format!("Rows in a second, {several} tasks"),
            table: table(tables, Work::Read, several, flavour),
            parts: |row| [row.throughput, 0.0],
        },
        Panel {
            head: "Processor time, µs (pale: the proxy's)".to_owned(),
            table: table(tables, Work::Read, several, flavour),
            parts: |row| [row.processor[0], row.processor[1]],
        },
    ]
}

fn class(way: Way) -> &'static str {
    match way {
        Way::Ours => "ours",
        _ if way.proxy().is_some() => "proxy",
        _ => "pool",
    }
}

/// The drawing, as a file of its own that can also stand in a page.
pub(crate) fn draw(tables: &[Table]) -> String {
    let panels = panels(tables);
    let mut height = 0;
    let mut placed = Vec::new();
    for panel in &panels {
        placed.push((height, panel));
        height += HEAD + panel.table.rows.len() * LINE + GAP;
    }
    let drawing = html! {
        svg class="peers" xmlns="http://www.w3.org/2000/svg" width="100%" height=(height) role="img" aria-label="Latency, throughput and processor time of each way to a row, as in the tables" {
            style { (maud::PreEscaped(STYLE)) }
            @for (y, panel) in placed {
                text class="head" x="0" y=(y + 20) { (panel.head) }
                @let widest = panel.table.rows.iter().map(|row| (panel.parts)(row).iter().sum::<f64>()).fold(1.0, f64::max);
                @for (number, row) in panel.table.rows.iter().enumerate() {
                    @let top = y + HEAD + number * LINE;
                    @let parts = (panel.parts)(row);
                    @let [first, second] = parts.map(|part| WIDEST * part / widest);
                    text x="0" y=(top + 11) { (row.way.words()) }
                    rect class=(class(row.way)) x="0" y=(top + 16) width=(percent(first)) height="11" {}
                    @if second > 0.0 {
                        rect class={ (class(row.way)) " second" } x=(percent(first)) y=(top + 16) width=(percent(second)) height="11" {}
                    }
                    text x=(percent(first + second)) dx="6" y=(top + 26) { (format!("{:.0}", parts.iter().sum::<f64>())) }
                }
            }
        }
    };
    // A line for each part, and none that is empty: that would end it in Markdown.
    format!("{}\n", drawing.into_string().replace("><", ">\n<"))
}

fn percent(share: f64) -> String {
    format!("{share:.1}%")
}
