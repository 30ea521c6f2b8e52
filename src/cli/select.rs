//! Which runs a verb means: by RUN, by label, or both.

use super::args::Common;
use super::run::parse_label;
use super::{root, root_for};
use crate::failure::Failure;
use crate::registry::seen::{self, SeenRun};

/// Labels that a run must have, all of them.
#[derive(Debug)]
pub(super) struct Filter(Vec<(String, String)>);

impl Filter {
    pub(super) fn of(common: &Common) -> Result<Filter, Failure> {
        Ok(Filter(common.labels.iter().map(|label| parse_label(label)).collect::<Result<_, _>>()?))
    }

    pub(super) fn fits(&self, run: &SeenRun) -> bool {
        let has = |(key, value): &(String, String)| {
            run.record.as_ref().is_ok_and(|record| record.labels.get(key) == Some(value))
        };
        self.0.iter().all(has)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Returns the runs that are meant: the one of `selector`, else the live ones with the labels.
pub(super) fn runs(selector: Option<&str>, common: &Common) -> Result<Vec<SeenRun>, Failure> {
    let filter = Filter::of(common)?;
    match selector {
        Some(selector) => {
            let run = seen::find(&root_for(selector)?, selector)?;
            if !filter.fits(&run) {
                return Err(Failure::usage(format!("run {} has other labels", run.id), "leave --label out"));
            }
            Ok(vec![run])
        }
        None if filter.is_empty() => Err(Failure::usage("no run is named", "name one, or select by --label")),
        None => live(&filter),
    }
}

/// Returns the live runs with the labels.
pub(super) fn live(filter: &Filter) -> Result<Vec<SeenRun>, Failure> {
    let runs = root()?.map(|root| seen::runs(&root)).unwrap_or_default();
    Ok(runs.into_iter().filter(|run| filter.fits(run)).collect())
}
