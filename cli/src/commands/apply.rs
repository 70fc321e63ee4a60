//! `weir apply` and `weir diff`: datasets as a file declares them.

use std::process::ExitCode;

use similar::TextDiff;
use tonic::Code;
use tonic::transport::Channel;
use weir_core::DatasetName;
use weir_origin::spec_of;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;

use crate::args::ApplyArgs;
use crate::connect::{self, CALL_DEADLINE, LISTING_DEADLINE, request};
use crate::documents::{self, Declared};
use crate::exit::{Failure, Reason};
use crate::output;
use crate::process::runtime;

/// The exit code of `weir diff` when there are differences; any other but 0 is a failure.
const DIFFERENT: u8 = 1;

/// `weir apply -f FILE`: all datasets are judged before any is changed.
pub(crate) fn apply(args: &ApplyArgs) -> Result<(), Failure> {
    let declared = documents::read(&args.file)?;
    runtime()?.block_on(async {
        let master = connect::master(&args.master, None).await?;
        judge_all(&master, &declared).await?;
        let mut failed = None;
        let mut unwritten = None;
        for dataset in &declared {
            match send(&master, dataset, None).await {
                Ok(reply) => {
                    let outcome = match reply.outcome() {
                        v1::ApplyOutcome::Created => "created",
                        v1::ApplyOutcome::Configured => "configured",
                        v1::ApplyOutcome::Unchanged => "unchanged",
                        v1::ApplyOutcome::Unspecified => "applied",
                    };
                    // A full disk does not keep the others from what they are to be, either.
                    let written = output::line(format_args!("dataset {} {outcome}", dataset.name));
                    unwritten = unwritten.or(written.err());
                }
                // One whose origin cannot be listed does not keep the others from what they are to be.
                Err(failure) => {
                    output::note(format_args!("weir: {}", failure.message()));
                    failed.get_or_insert(failure);
                }
            }
        }
        // What failed has been told.
        let failed = failed.map(Failure::silent);
        failed.or(unwritten).map_or(Ok(()), Err)
    })
}

/// `weir diff -f FILE`.
pub(crate) fn diff(args: &ApplyArgs) -> Result<ExitCode, Failure> {
    let different = compare(args).map_err(|failure| match failure.code() {
        DIFFERENT => Failure::new(Reason::Usage, failure.message()),
        _ => failure,
    })?;
    let code = if different { DIFFERENT } else { 0 };
    Ok(ExitCode::from(code))
}

/// Prints what is different, and gives whether anything is.
fn compare(args: &ApplyArgs) -> Result<bool, Failure> {
    let declared = documents::read(&args.file)?;
    runtime()?.block_on(async {
        let mut master = connect::master(&args.master, None).await?;
        let mut different = false;
        for dataset in &declared {
            let live = live(&mut master, &dataset.name).await?;
            let wanted = documents::yaml(&dataset.name, dataset.spec.clone())?;
            if live == wanted {
                continue;
            }
            different = true;
            let diff = TextDiff::from_lines(&live, &wanted);
            let name = &dataset.name;
            let text = diff
                .unified_diff()
                .header(
                    &format!("{name} (as it is)"),
                    &format!("{name} (as declared)"),
                )
                .to_string();
            for line in text.lines() {
                output::line(line)?;
            }
        }
        judge_all(&master, &declared).await?;
        Ok(different)
    })
}

/// Has the master judge all datasets, and change none.
async fn judge_all(master: &MasterClient<Channel>, declared: &[Declared]) -> Result<(), Failure> {
    let mut new = 0;
    for dataset in declared {
        let judged = send(master, dataset, Some(new)).await?;
        if judged.outcome() == v1::ApplyOutcome::Created {
            new += 1;
        }
    }
    Ok(())
}

/// Applies a dataset, or has it judged as one that is to be made after so many new ones.
async fn send(
    master: &MasterClient<Channel>,
    dataset: &Declared,
    judged_beside: Option<u32>,
) -> Result<v1::ApplyDatasetReply, Failure> {
    let apply = v1::ApplyDatasetRequest {
        name: dataset.name.to_string(),
        spec: dataset.spec.to_json(),
        dry_run: judged_beside.is_some(),
        beside: judged_beside.unwrap_or_default(),
        ..v1::ApplyDatasetRequest::default()
    };
    let deadline = match judged_beside {
        Some(_) => CALL_DEADLINE,
        None => LISTING_DEADLINE,
    };
    let mut asked = master.clone();
    let call = asked.apply_dataset(request(apply, deadline));
    let reply = connect::listing(master, dataset.name.as_str(), call).await;
    let reply = reply.map_err(|status| {
        if status.code() == Code::Unimplemented {
            return Failure::new(
                Reason::Other,
                "the master is of an earlier version, which knows no `weir apply`; upgrade it, or use `weir dataset create`",
            );
        }
        let failure = Failure::from(status).about(format_args!("dataset {}", dataset.name));
        failure.reworded(documents::in_fields)
    })?;
    Ok(reply.into_inner())
}

/// The document of a dataset as it is; empty if there is none.
async fn live(master: &mut MasterClient<Channel>, name: &DatasetName) -> Result<String, Failure> {
    let get = v1::GetDatasetRequest {
        name: name.to_string(),
    };
    match master.get_dataset(request(get, CALL_DEADLINE)).await {
        Err(status) if status.code() == Code::NotFound => Ok(String::new()),
        Err(status) => Err(status.into()),
        Ok(dataset) => document(&dataset.into_inner()),
    }
}

/// The document of a dataset that a master told of.
pub(crate) fn document(dataset: &v1::Dataset) -> Result<String, Failure> {
    let name = dataset.name.parse().map_err(anyhow::Error::from)?;
    let spec = spec_of(dataset).map_err(|error| {
        Failure::new(
            Reason::Other,
            format!("dataset {name} has a specification that this command does not know: {error}; use the version of the master"),
        )
    })?;
    documents::yaml(&name, spec)
}
