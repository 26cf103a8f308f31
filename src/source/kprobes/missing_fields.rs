//! What is missing on kernels where samples lack a field.
//!
//! Only fields of type `Option` can be missing: see [`sample!`](socktrail_kprobes::sample).

use socktrail_kprobes::{Field, Format};

/// Groups of fields, and what is missing if a sample has no field of the group. One field of a group is enough.
const LOSSES: &[(&[&str], &str)] = &[
    // `tcp_sock.segs_in` and `segs_out`, since Linux 4.2.
    (&["segs_in"], UNCOUNTED),
    (&["segs_out"], UNCOUNTED),
    (&["fragment"], "received fragments of a packet count as one packet"),
    (
        &["start", "seconds"],
        "when processes start, unless they run until /proc is read: others have no start and no entity id",
    ),
    (&["protocol"], "the protocols of sockets whose creation does not name one"),
    (&["owner_family"], "which freed packets are unread copies of a capture: such packets may be subtracted"),
    (&["bound_dev_if"], "the interface of link-local addresses"),
];
const UNCOUNTED: &str = "TCP segments that the kernel handles together as one packet count as one";

/// The group that only IPv6 needs.
const IPV6: (&[&str], &str) =
    (&["v6_rcv_saddr_high", "v6_rcv_saddr_low", "v6_daddr_high", "v6_daddr_low"], "the IPv6 addresses of sockets");

/// What is missing if records have this format.
pub(super) fn without(fields: &[Field], format: &Format, ipv6: bool) -> Vec<&'static str> {
    let is_left_out = |name: &str| {
        let mut fields = fields.iter();
        fields.any(|field| field.optional && field.name == name) && format.field(name).is_none()
    };
    let lost = |(names, _): &&(&[&str], _)| names.iter().all(|name| is_left_out(name));
    let (names, lost_addresses) = IPV6;
    let addresses = (ipv6 && names.iter().any(|name| is_left_out(name))).then_some(lost_addresses);
    let mut missing: Vec<_> = LOSSES.iter().filter(lost).map(|(_, loss)| *loss).chain(addresses).collect();
    missing.dedup();
    missing
}

#[cfg(test)]
mod tests {
    use socktrail_kprobes::Sample;

    use super::*;
    use crate::source::kprobes::packets::{Ipv4Out, UdpIpv4In};
    use crate::source::kprobes::processes::WakeUpNewTask;
    use crate::source::kprobes::sockets::{SetState, SockGraft};
    use crate::source::kprobes::{Probe, all_features};

    /// The format of a record without the fields of these names.
    fn format(fields: &[Field], without: &[&str]) -> Format {
        let mut text = "name: e\nID: 7\nformat:\n".to_owned();
        for (at, field) in fields.iter().filter(|field| !without.contains(&field.name)).enumerate() {
            text += &format!("\tfield:u8 {};\toffset:{at};\tsize:1;\tsigned:0;\n", field.name);
        }
        Format::parse(text.as_bytes()).unwrap()
    }

    fn lost<S: Sample>(left_out: &[&str], ipv6: bool) -> Vec<&'static str> {
        without(S::FIELDS, &format(S::FIELDS, left_out), ipv6)
    }

    #[test]
    fn a_format_without_fields_has_a_loss() {
        assert!(lost::<Ipv4Out>(&[], true).is_empty());
        assert_eq!(lost::<Ipv4Out>(&["segs_in", "segs_out"], true), [UNCOUNTED]);
        assert_eq!(lost::<UdpIpv4In>(&["fragment"], true), ["received fragments of a packet count as one packet"]);
        let addresses = ["v6_rcv_saddr_high", "v6_rcv_saddr_low", "v6_daddr_high", "v6_daddr_low"];
        assert_eq!(lost::<SockGraft>(&addresses, true), ["the IPv6 addresses of sockets"]);
        assert_eq!(lost::<SockGraft>(&addresses[2..], true), ["the IPv6 addresses of sockets"]);
        assert!(lost::<SockGraft>(&addresses, false).is_empty());
        let segments_and_addresses = [&addresses[..], &["segs_in"]].concat();
        assert_eq!(lost::<SetState>(&segments_and_addresses, true), [UNCOUNTED, "the IPv6 addresses of sockets"]);
    }

    #[test]
    fn of_two_forms_of_a_start_one_is_enough() {
        assert!(lost::<WakeUpNewTask>(&["start"], true).is_empty());
        assert!(lost::<WakeUpNewTask>(&["seconds", "nanos"], true).is_empty());
        assert_eq!(lost::<WakeUpNewTask>(&["start", "seconds", "nanos"], true).len(), 1);
    }

    /// Except for the thread's name, whose loss is stated in its own documentation.
    #[test]
    fn every_field_that_may_be_left_out_has_a_loss() {
        let said = |name: &str| LOSSES.iter().chain([&IPV6]).any(|(names, _)| names.contains(&name)) || name == "comm";
        // The second half of a value whose first half is listed.
        let is_half = |name: &str| name == "nanos";
        // Fetched next to fields that every sample has; missing only in older recordings.
        let is_only_in_newer_recordings = |name: &str| ["enqueued", "mac_len", "cloned"].contains(&name);
        for probe in all_features().flat_map(|(_, probes): &(_, &[Probe])| probes.iter()) {
            for field in probe.fields.iter().filter(|field| field.optional) {
                let is_reported = said(field.name) || is_half(field.name) || is_only_in_newer_recordings(field.name);
                assert!(is_reported, "{}", field.name);
            }
        }
    }
}
