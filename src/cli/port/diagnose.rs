//! `agent-run port diagnose`: what is wrong with a port.

use serde_json::{Value, json};

use super::super::args::PortDiagnoseArgs;
use super::super::printer::Printer;
use super::{bad, finding_json, means};
use crate::failure::Failure;
use crate::port::diagnose::{Finding, diagnose};
use crate::port::displace::Registry;
use crate::ports::parse_port;
use crate::settings;

pub(super) fn run(args: &PortDiagnoseArgs, printer: &Printer) -> Result<u8, Failure> {
    let port = parse_port(&args.port).map_err(|error| bad(&error))?;
    let means = means(&settings::resolve(settings::Layer::new())?)?;
    let findings = diagnose(port, &means, &Registry::open());
    if printer.is_json() {
        let diagnostics: Vec<Value> = findings.iter().map(finding_json).collect();
        printer.document("ports", json!([{ "port": port, "diagnostics": diagnostics }]));
    } else {
        printer.answer(&findings.iter().map(lines).collect::<Vec<_>>().join("\n"));
    }
    Ok(0)
}

fn lines(finding: &Finding) -> String {
    let Finding { kind, finding, advice } = finding;
    match advice {
        Some(advice) => format!("{kind:<12} {finding}\n{:<12} -> {advice}", ""),
        None => format!("{kind:<12} {finding}"),
    }
}
