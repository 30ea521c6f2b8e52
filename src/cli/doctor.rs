//! `agent-run doctor`: which rungs of containment can be had here, and what to do about the others.

use serde_json::{Value, json};

use super::args::DoctorArgs;
use super::printer::Printer;
use crate::containment::{self, Rung};
use crate::failure::Failure;
use crate::registry::root::Root;
use crate::sys::signal;

pub(super) fn run(_: &DoctorArgs, printer: &Printer) -> Result<u8, Failure> {
    // The caller may have ignored SIGCHLD; the probe waits for a child.
    signal::expect_children();
    let rungs = containment::rungs();
    // Making it is what the first run would do; what is wrong with it is said as that would say it.
    let root = Root::open()?;
    let state = root.path().display().to_string();
    if printer.is_json() {
        let rungs: Vec<Value> = rungs.iter().map(document).collect();
        printer.document("rungs", Value::Array(rungs));
    } else {
        let lines: Vec<String> = rungs.iter().map(line).collect();
        printer.answer(&format!("{}\n\nstate directory  {state}{}", lines.join("\n"), remark(&root)));
    }
    Ok(0)
}

fn document(rung: &Rung) -> Value {
    let Rung { name, gives, obstacle, advice } = rung;
    json!({ "name": name, "usable": obstacle.is_none(), "gives": gives, "why_not": obstacle, "advice": advice })
}

fn line(rung: &Rung) -> String {
    let mut text = match &rung.obstacle {
        None => format!("yes  {:<14} {}", rung.name, rung.gives),
        Some(why) => format!("no   {:<14} {}\n     why not: {why}", rung.name, rung.gives),
    };
    if let Some(advice) = rung.advice {
        text.push_str(&format!("\n     what to do: {advice}"));
    }
    text
}

/// A fallback is said: two shells with different TMPDIRs then do not see each other's runs.
fn remark(root: &Root) -> &'static str {
    if root.is_fallback() {
        "\n     /var/tmp cannot be written, so other shells may look for runs elsewhere"
    } else {
        ""
    }
}
