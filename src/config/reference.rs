//! What each key is about. `docs/configuration.md` and `socktrail.example.yml` are made of this, and of the values that are built
//! in; a test holds them to it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::keys::Keys;
use super::load::resolved;
use super::{Config, Origin};

/// Keys that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// The first part of their names.
    pub name: &'static str,
    /// What they are about.
    pub title: &'static str,
    /// Each key, and what it does, in Markdown.
    pub keys: &'static [(&'static str, &'static str)],
}

/// All keys, by sections.
pub const SECTIONS: &[Section] = &[
    Section {
        name: "socket",
        title: "How flows are watched: names and defaults are those of Auditbeat's system/socket",
        keys: &[
            (
                "socket.tracefs_path",
                "the mount point of tracefs, or the tracing directory of debugfs; found, else mounted, when left out",
            ),
            ("socket.enable_ipv6", "whether IPv6 is watched; where the kernel has it, when left out"),
            ("socket.flow_inactive_timeout", "a flow without traffic for so long has ended"),
            ("socket.flow_termination_timeout", "how long packets are still counted in after a socket was closed"),
            (
                "socket.socket_inactive_timeout",
                "a socket without traffic and without a known owner is forgotten after so long",
            ),
            ("socket.perf_queue_size", "how many samples may wait to be taken in"),
            (
                "socket.lost_queue_size",
                "how many reports of losses may wait for the agent; while there is no room, those of one cause are joined into one",
            ),
            ("socket.ring_size_exponent", "each CPU's ring has 2^n pages"),
            (
                "socket.clock_max_drift",
                "by how much the wall clock may move against the kernel's before times follow it",
            ),
            (
                "socket.clock_sync_period",
                "how often the kernel's clock is compared with ours where programs cannot read it (before Linux 4.1); elsewhere the clocks are looked at ten times a second",
            ),
            ("socket.guess_timeout", "the time that one guess may take"),
            ("socket.dns.enabled", "whether names that processes look up are listened to"),
            ("socket.dns.type", "how they are listened to; there is no other way"),
            ("socket.dns.af_packet.interface", "only this interface is listened to"),
            ("socket.dns.af_packet.snaplen", "bytes read of each packet"),
            ("socket.dns.ports", "ports that servers of names listen on"),
            (
                "socket.flow_report_interval",
                "how often a flow with traffic is reported while it lives, with `flow.final` false; never when left out",
            ),
            ("socket.source", "where the kernel's layout comes from: `auto`, `guess`, `btf`, `btf:PATH`, `file:PATH`"),
            (
                "socket.max_flows",
                "live flows at most, of at most 440 bytes each with its socket; beyond, those closest to their end are written early",
            ),
            ("socket.max_sockets", "known sockets at most"),
            ("socket.max_processes", "known processes at most"),
            ("socket.mask", "kernel functions to do without, as if the kernel did not have them"),
        ],
    },
    Section {
        name: "events",
        title: "Calls on sockets, as documents of their own beside flows",
        keys: &[
            (
                "events.actions",
                "calls that become documents of their own beside flows: `create`, `bind`, `listen`, `accept`, `connect`, `setsockopt`, `close`. Each has an `event.sequence` that counts up within a run",
            ),
            (
                "events.where",
                "only events that fulfil this [condition](events.md#conditions), as in `remote.port == 443 && process.name in [\"curl\", \"wget\"]`",
            ),
        ],
    },
    Section {
        name: "sensors",
        title: "Sensors: sockets that appear and disappear, chosen by patterns, as documents of their own",
        keys: &[
            (
                "sensors.files",
                "[sensor files](sensors.md), whose sensors' events become documents of their own beside flows. No two may define a sensor of one id",
            ),
            ("sensors.profiles", "only sensors of these profiles, and those that name none; all when empty"),
            ("sensors.control", "where `socktrail unlock` unlocks events, if a sensor locks"),
        ],
    },
    Section {
        name: "filter",
        title: "What is left out: an empty list lets everything pass, exclude beats only",
        keys: &[
            ("filter.exclude_loopback", "whether what the host says to itself is left out"),
            ("filter.ports.only", "only these ports, of either end"),
            ("filter.ports.exclude", "none of these ports, of either end"),
            ("filter.networks.only", "only these networks of the remote end, as in `192.0.2.0/24`"),
            ("filter.networks.exclude", "none of these networks of the remote end, as in `192.0.2.0/24`"),
            ("filter.uids.only", "only these user ids of owners"),
            ("filter.uids.exclude", "none of these user ids of owners"),
            ("filter.pids.only", "only these process ids of owners"),
            ("filter.pids.exclude", "none of these process ids of owners"),
        ],
    },
    Section {
        name: "document",
        title: "How documents are written",
        keys: &[(
            "document.direction",
            "`network.direction` is `ingress` or `egress`, as ECS asks of a host; `inbound` makes it `inbound` or `outbound`",
        )],
    },
    Section {
        name: "output",
        title: "Where documents go: several outputs may be on at once",
        keys: &[
            ("output.queue_size", "bytes of documents that may wait in memory for each output"),
            ("output.stdout.enabled", "whether documents go to standard output, one a line"),
            ("output.file.path", "the file; the output is off when left out"),
            ("output.file.rotate_size", "a file is done with before it would be larger"),
            ("output.file.rotate_every", "a file is done with when it is so old"),
            ("output.file.keep", "how many files that are done with are kept"),
            ("output.file.gzip", "whether files that are done with are packed"),
            (
                "output.file.sync",
                "when the disk is to have what was written: `never`, `always` (before the next documents are taken), or after so long at the latest",
            ),
        ],
    },
    Section {
        name: "output.elasticsearch",
        title: "Elasticsearch and OpenSearch; `socktrail setup` prepares them",
        keys: &[
            (
                "output.elasticsearch.hosts",
                "where to, as in `https://host:9200`; the output is off when empty. When one fails, the next is asked",
            ),
            (
                "output.elasticsearch.index",
                "the index or data stream; `{kind}` stands for `flow`, `event`, `sensor` or `loss`",
            ),
            ("output.elasticsearch.data_stream", "whether it is a data stream: what `socktrail setup` makes of it"),
            ("output.elasticsearch.username", "a user"),
            ("output.elasticsearch.password", "the user's password"),
            (
                "output.elasticsearch.api_key",
                "an API key in place of a user, as `id:key` or encoded; better in the environment, as `SOCKTRAIL_OUTPUT_ELASTICSEARCH_API_KEY`",
            ),
            (
                "output.elasticsearch.ssl.certificate_authorities",
                "files (PEM) of certificates of authorities; those of the host when empty",
            ),
            (
                "output.elasticsearch.ssl.ca_trusted_fingerprint",
                "the SHA-256 of a certificate that the server shows: its own, or that of an authority",
            ),
            ("output.elasticsearch.ssl.certificate", "our certificate (PEM)"),
            ("output.elasticsearch.ssl.key", "its key (PEM)"),
            ("output.elasticsearch.compression_level", "how much requests are packed: 0, not at all, to 9"),
            ("output.elasticsearch.bulk_max_size", "documents in one request at most; 5 MiB of them at most"),
            ("output.elasticsearch.timeout", "how long a request may take"),
            ("output.elasticsearch.backoff.init", "the first wait after a failure"),
            ("output.elasticsearch.backoff.max", "the longest wait"),
        ],
    },
    Section {
        name: "spool",
        title: "Where documents wait for a server",
        keys: &[
            ("spool.path", "the folder; created for its owner alone"),
            ("spool.max_size", "bytes at most; then the oldest segment is dropped, and counted"),
            ("spool.segment_size", "bytes of a segment"),
            ("spool.sync", "after how long at the latest the disk has what was taken: what a loss of power may cost"),
        ],
    },
    Section {
        name: "agent",
        title: "The program itself",
        keys: &[
            ("agent.name", "`agent.name` in documents; the host's name when empty"),
            ("agent.nice", "how much less of the CPU than others get the agent asks for, 0 to 19: `nice(2)`"),
            (
                "agent.harden",
                "whether the agent gives up, once it watches, what it does not need any more: [capabilities, system calls, files](security.md)",
            ),
            ("agent.shutdown_timeout", "how long the end may take"),
        ],
    },
    Section {
        name: "metrics",
        title: "Numbers of the program",
        keys: &[(
            "metrics.listen",
            "where [numbers for Prometheus](metrics.md) are served: a loopback address, `127.0.0.1:9479`, or `unix:/run/socktrail.sock`; nowhere when left out",
        )],
    },
];

/// A section's keys with defaults, as a Markdown table.
pub fn table(section: &Section) -> String {
    let mut table = String::from("| key | default | what it does |\n|---|---|---|\n");
    let defaults = defaults();
    for (key, what) in section.keys {
        let default = match defaults.get(*key).map_or("", String::as_str) {
            "" => "none",
            "\"\"" => "empty",
            value => value,
        };
        let _ = writeln!(table, "| `{key}` | {default} | {what} |");
    }
    table
}

/// A configuration file with every key, each commented out, and what is built in.
pub fn example() -> String {
    let mut example = String::from(
        "## Configuration of `socktrail agent`. Every key is here with what is built in; take the `#` away to change it.\n\
         ## `socktrail config check FILE` says what is wrong with a file, docs/configuration.md what is around the keys.\n",
    );
    let defaults = defaults();
    for section in SECTIONS {
        let _ = writeln!(example, "\n## ---- {} ----\n", section.title);
        for (key, what) in section.keys {
            let _ = writeln!(example, "## {}", sentence(what));
            let _ = writeln!(
                example,
                "{}",
                format!("#{key}: {}", defaults.get(*key).map_or("", String::as_str)).trim_end()
            );
        }
    }
    example
}

/// What is built in, in YAML; nothing for none.
fn defaults() -> BTreeMap<String, String> {
    let in_yaml = |json: String| match &*json {
        "null" => String::new(),
        "\"\"" => json,
        _ => json.trim_matches('"').to_owned(),
    };
    let all = resolved(&Config::default(), &Keys::all(), |_| Origin::Default).into_iter();
    all.map(|resolved| (resolved.key, in_yaml(resolved.value))).collect()
}

/// Without Markdown, up to a full stop.
fn sentence(markdown: &str) -> String {
    let mut plain = String::with_capacity(markdown.len() + 1);
    let mut rest = markdown;
    // A link's text is all that is left of it.
    while let Some((before, (text, after))) = rest.split_once('[').and_then(|(before, link)| {
        let (text, target) = link.split_once("](")?;
        Some((before, (text, target.split_once(')')?.1)))
    }) {
        plain.push_str(before);
        plain.push_str(text);
        rest = after;
    }
    plain.push_str(rest);
    plain.retain(|letter| letter != '`');
    // What is code keeps its letters.
    if !markdown.starts_with('`')
        && let Some(first) = plain.get_mut(..1)
    {
        first.make_ascii_uppercase();
    }
    plain + "."
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_is_in_one_section() {
        let listed: Vec<_> =
            SECTIONS.iter().flat_map(|section| section.keys).map(|(key, _)| (*key).to_owned()).collect();
        let distinct: BTreeSet<_> = listed.iter().cloned().collect();
        assert_eq!(distinct.len(), listed.len());
        let there: BTreeSet<_> = defaults().into_keys().collect();
        assert_eq!(distinct, there);
    }

    #[test]
    fn markdown_becomes_a_sentence() {
        assert_eq!(
            sentence("only what fulfils this [condition](events.md#c), `a` or [b](c)"),
            "Only what fulfils this condition, a or b."
        );
        assert_eq!(sentence("`agent.name` in documents"), "agent.name in documents.");
        assert_eq!(sentence("[unclosed](x"), "[unclosed](x.");
    }

    #[test]
    fn a_table_has_what_is_built_in() {
        let table = table(&SECTIONS[0]);
        assert!(table.contains("| `socket.flow_inactive_timeout` | 30s | "), "{table}");
        assert!(table.contains("| `socket.tracefs_path` | none | "), "{table}");
    }
}
