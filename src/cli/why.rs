//! `oca why`: why an asset is here or not.

use std::{
    io::{Write, stdout},
    process::ExitCode,
};

use serde_json::{Value, json};

use super::operator::{Reach, with_operator};

/// What `oca why` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The asset's path, as players ask for it: /films/1.mp4
    path: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Exit code 1 where the asset is not held as a whole.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    with_operator(&arguments.reach, async |operator| {
        let told = operator.post("v1/why", &json!({ "path": arguments.path })).await?;
        let text = if arguments.json { format!("{told:#}\n") } else { words(&told) };
        stdout().lock().write_all(text.as_bytes())?;
        let whole = told["held"]["whole"] == true && told["held"]["seen_by_viewers"] == true;
        Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

fn words(told: &Value) -> String {
    let held = &told["held"];
    let mut out = format!("{}\n", told["asset"].as_str().unwrap_or_default());
    out += &if held.is_null() {
        "held      no\n".into()
    } else {
        let whole = match (held["whole"] == true, held["seen_by_viewers"] == true) {
            (true, true) => "yes",
            (true, false) => "yes, and not served before its digest was compared",
            (false, true) => "in part",
            (false, false) => "in part, and not served before it is whole and its digest compared",
        };
        format!(
            "held      {whole}: {} of {} bytes reserved on {}\n",
            held["reserved"],
            held["length"],
            held["volume"].as_str().unwrap_or_default()
        )
    };
    let manifest = &told["manifest"];
    out += &if manifest.is_null() {
        "manifest  there is none\n".into()
    } else if manifest["rank"].is_null() {
        format!("manifest  {} does not list it\n", manifest["sequence"])
    } else {
        let (is_here, is_whole) = (!held.is_null(), held["whole"] == true && held["seen_by_viewers"] == true);
        let decision = match manifest["decision"].as_str().unwrap_or_default() {
            "keep" if is_here => "it is kept",
            "keep" => {
                "it was kept, and has gone since; what is to be here is looked at every fill.nightly.plan_interval"
            }
            "fetch" if is_whole => "it was to be fetched, and is here",
            "fetch" if !manifest["waited_seconds"].is_null() => {
                "it is to be fetched; sources further away are asked once others have been waited for"
            }
            "fetch" => "it is to be fetched",
            "too_large" => "passed over: no volume is large enough",
            "no_room" => "passed over: what is wanted more has taken the room",
            "watched" => "passed over: what is being watched stands in its place",
            "purged" => "the manifest itself purges it",
            _ => "nothing was decided of it yet",
        };
        let waited =
            manifest["waited_seconds"].as_u64().filter(|_| !is_whole).map(|seconds| format!(" ({seconds} s so far)"));
        let (sequence, rank, waited) = (&manifest["sequence"], &manifest["rank"], waited.unwrap_or_default());
        format!("manifest  {sequence} lists it with rank {rank}: {decision}{waited}\n")
    };
    for event in told["events"].as_array().into_iter().flatten() {
        out += &format!("event     {} {}", event["time"], event["event"].as_str().unwrap_or_default());
        if let Some(reason) = event["reason"].as_str() {
            out += &format!(": {reason}");
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decided_is_told_beside_what_has_come_of_it() {
        let told = |decision: &str, held: Value| {
            let manifest = json!({ "sequence": 1, "rank": 0, "decision": decision });
            let words = words(&json!({ "asset": "a", "held": held, "manifest": manifest, "events": [] }));
            words.lines().last().and_then(|line| line.split_once(": ")).expect("a decision").1.to_owned()
        };
        let here = json!({ "whole": true, "seen_by_viewers": true, "reserved": 1, "length": 1, "volume": "/v" });
        assert_eq!(told("keep", here.clone()), "it is kept");
        assert!(told("keep", Value::Null).starts_with("it was kept, and has gone since"));
        assert_eq!(told("fetch", here), "it was to be fetched, and is here");
        assert_eq!(told("fetch", Value::Null), "it is to be fetched");
    }

    #[test]
    fn it_says_why_in_words() {
        let told = json!({
            "asset": "a.mp4", "held": null,
            "manifest": { "sequence": 4, "rank": 9, "decision": "no_room" },
            "events": [{ "time": 5, "event": "evicted", "reason": "outranked" }],
        });
        assert_eq!(
            words(&told),
            "a.mp4\nheld      no\nmanifest  4 lists it with rank 9: passed over: what is wanted more has taken the room\n\
             event     5 evicted: outranked\n"
        );
    }
}
