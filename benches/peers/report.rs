//! The tables, in Markdown, and the page of the guide that shows them.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::SEVERAL;
use crate::machine::Machine;
use crate::rounds::{Row, Table};
use crate::ways::{Flavour, TASKS, Way, Work};

/// What stands before and after the measured part of the page.
const MARKS: [&str; 2] = ["<!-- measured -->\n", "<!-- end of what was measured -->"];

/// The table of a case.
pub(crate) fn table(tables: &[Table], work: Work, tasks: usize, flavour: Flavour) -> &Table {
    let mut found = tables.iter().filter(|table| {
        let case = table.case;
        case.work == work && case.tasks == tasks && case.flavour == flavour
    });
    found.next().expect("each case is measured")
}

pub(crate) fn markdown(machine: &Machine, tables: &[Table], missing: &[(&str, String)]) -> String {
    let mut text = format!(
        "{} cores ({}), Linux {}, load {} before the run. {}.\n",
        machine.cores,
        machine.processor,
        machine.kernel,
        machine.load,
        machine.versions.join(", ")
    );
    for (name, reason) in missing {
        let _ = writeln!(text, "\nMissing: {name}. {reason}.");
    }
    for work in [Work::Read, Work::Request] {
        latency(&mut text, tables, work);
        throughput(&mut text, tables, work);
    }
    text
}

/// A ratio, with the middle half of the rounds.
fn ratio(row: &Row) -> String {
    let [low, middle, high] = row.ratio;
    if middle.is_nan() {
        return "too few".to_owned();
    }
    format!("{middle:.2} ({low:.2} to {high:.2})")
}

fn title(work: Work) -> &'static str {
    match work {
        Work::Read => "One row",
        Work::Request => "A request of one write and nine reads",
    }
}

/// One task, on both runtimes.
fn latency(text: &mut String, tables: &[Table], work: Work) {
    let [current, multi] = [Flavour::CurrentThread, Flavour::MultiThread]
        .map(|flavour| table(tables, work, 1, flavour));
    let (unseen, line) = match work {
        Work::Read => ("", ""),
        Work::Request => (" own write not seen |", "---|"),
    };
    let _ = writeln!(
        text,
        "\n**{}, one task.** Microseconds. Ratios are to {}, less is better.\n\n\
         | | reads on | current-thread: median | 99 % | ratio | multi-thread: median | 99 % | ratio |{unseen}\n\
         |---|---|---|---|---|---|---|---|{line}",
        title(work),
        Way::BASE.words(),
    );
    for one in &current.rows {
        let Some(other) = multi.row(one.way) else {
            continue;
        };
        let _ = write!(
            text,
            "| {} | {} | {:.0} | {:.0} | {} | {:.0} | {:.0} | {} |",
            one.way.words(),
            one.way.reads_on(),
            one.latency[0],
            one.latency[1],
            ratio(one),
            other.latency[0],
            other.latency[1],
            ratio(other),
        );
        if work == Work::Request {
            let _ = write!(text, " {:.1} % |", other.unseen_share());
        }
        text.push('\n');
    }
    let _ = writeln!(text, "\n{} and {} rounds.", current.rounds, multi.rounds);
}

/// Several tasks, and what they take of the processors.
fn throughput(text: &mut String, tables: &[Table], work: Work) {
    let [few, many] = SEVERAL.map(|tasks| table(tables, work, tasks, Flavour::MultiThread));
    let (unseen, line) = match work {
        Work::Read => ("", ""),
        Work::Request => (" own write not seen |", "---|"),
    };
    let _ = writeln!(
        text,
        "\n**{}, several tasks.** How many in a second; ratios are to {}, more is better. Then the processor time of \
         one, in microseconds, with {} tasks.\n\n\
         | | {} tasks | ratio | {TASKS} tasks | ratio | application | proxy | both | servers |{unseen}\n\
         |---|---|---|---|---|---|---|---|---|{line}",
        title(work),
        Way::BASE.words(),
        few.case.tasks,
        few.case.tasks,
    );
    for one in &few.rows {
        let Some(other) = many.row(one.way) else {
            continue;
        };
        let [application, proxy, servers] = one.processor;
        let through = match one.way.proxy() {
            Some(_) => format!("{proxy:.0}"),
            None => "-".to_owned(),
        };
        let _ = write!(
            text,
            "| {} | {:.0} | {} | {:.0} | {} | {application:.0} | {through} | {:.0} | {servers:.0} |",
            one.way.words(),
            one.throughput,
            ratio(one),
            other.throughput,
            ratio(other),
            application + proxy,
        );
        if work == Work::Request {
            let _ = write!(text, " {:.1} % |", one.unseen_share());
        }
        text.push('\n');
    }
    let _ = writeln!(text, "\n{} and {} rounds.", few.rounds, many.rounds);
}

/// Puts it between the marks of a page.
pub(crate) fn write(file: &Path, report: &str) {
    let page = fs::read_to_string(file).unwrap();
    let [begin, end] = MARKS;
    let (before, rest) = page
        .split_once(begin)
        .expect("the page has a mark where it begins");
    let (_, after) = rest
        .split_once(end)
        .expect("the page has a mark at its end");
    fs::write(file, format!("{before}{begin}\n{report}\n{end}{after}")).unwrap();
}
