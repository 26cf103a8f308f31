//! Formats the state of each feature, the results of the self-test, and the sources of the layout.

use std::collections::BTreeMap;

use socktrail::probes::listed;
use socktrail::survey::{Capability, CapabilityState, Survey};

use crate::cli::table::aligned;

/// A line for each feature, with what is missing and why if it is not ok, then lines about the self-test and the layout.
pub fn table(survey: &Survey) -> String {
    let rows: Vec<_> = survey.capabilities.iter().map(row).collect();
    let mut text = String::new();
    for (capability, line) in survey.capabilities.iter().zip(aligned(&rows).lines()) {
        text.push_str(line);
        text.push('\n');
        if let Some(missing) = &capability.missing {
            text.push_str(&format!("      missing: {missing}\n"));
        }
        if !capability.reason.is_empty() {
            text.push_str(&format!("      why: {}\n", capability.reason));
        }
    }
    text + "\n" + &accounting(survey) + &self_test(survey) + &layout(survey)
}

fn row(capability: &Capability) -> [String; 3] {
    let state = match capability.state {
        CapabilityState::Ok => "ok",
        CapabilityState::Degraded => "DEGRADED",
        CapabilityState::Lost => "LOST",
    };
    [state.to_owned(), capability.feature.to_string(), capability.function.unwrap_or("-").to_owned()]
}

/// How packets would be counted.
fn accounting(survey: &Survey) -> String {
    match &survey.sampled_because {
        None => "accounting: kernel: programs in the kernel count packets\n".to_owned(),
        Some(reason) => format!("accounting: samples: each packet is sampled: {reason}\n"),
    }
}

/// How many probes the test traffic hit, and which traffic could not be made.
fn self_test(survey: &Survey) -> String {
    let test = &survey.self_test;
    let mut text = match (&test.untested, &test.went_through[..]) {
        (Some(reason), _) => format!("self-test: not run: {reason}\n"),
        (None, []) => "self-test: not possible: no test traffic arrived over loopback\n".to_owned(),
        (None, traffic) => {
            format!("self-test: {} probes were hit by test traffic: {}\n", survey.hits(), listed(traffic))
        }
    };
    for failed in &test.failed {
        text.push_str(&format!("      test traffic failed: {}: {}\n", failed.traffic, failed.reason));
    }
    text
}

/// How many keys of the layout come from which source.
fn layout(survey: &Survey) -> String {
    let mut sources = BTreeMap::<String, usize>::new();
    let fields = survey.layout.layout.fields().map(|(_, field)| field.source);
    let arguments = survey.layout.layout.arguments().map(|(_, argument)| argument.source);
    for source in fields.chain(arguments) {
        *sources.entry(source.to_string()).or_default() += 1;
    }
    let counts: Vec<_> = sources.iter().map(|(source, count)| format!("{count} from {source}")).collect();
    format!(
        "layout: keys found: {}, in {:.1?} (`socktrail layout` shows all keys)\n",
        counts.join(", "),
        survey.layout.took
    )
}
