//! What is lost on this kernel because samples lack a field.
//!
//! Only fields of type `Option` can be missing: see [`sample!`](socktrail_kprobes::sample).

use socktrail_kprobes::{Field, Format};

/// Fields of which one is enough, and what is lost if a sample has none of them.
const LOSSES: &[(&[&str], &str)] = &[
    // `tcp_sock.segs_in` and `segs_out`, since Linux 4.2.
    (&["segs_in"], UNCOUNTED),
    (&["segs_out"], UNCOUNTED),
    (&["fragment"], "packets that arrive in fragments count as one"),
    (
        &["start", "seconds"],
        "when processes start, unless they live until /proc is asked: others have no start and no entity id",
    ),
    (&["protocol"], "the protocols of sockets that their calls do not name"),
    (&["owner_family"], "which packets are copies that a capture never read: the packets may be subtracted"),
    (&["bound_dev_if"], "the device of link-local addresses"),
];
const UNCOUNTED: &str = "several TCP segments that the kernel handles as one packet count as one";

/// What only IPv6 has.
const IPV6: (&[&str], &str) =
    (&["v6_rcv_saddr_high", "v6_rcv_saddr_low", "v6_daddr_high", "v6_daddr_low"], "the IPv6 addresses of sockets");

/// What is lost if records have this format.
pub(super) fn without(fields: &[Field], format: &Format, ipv6: bool) -> Option<&'static str> {
    let is_left_out = |name: &str| {
        let mut fields = fields.iter();
        fields.any(|field| field.optional && field.name == name) && format.field(name).is_none()
    };
    let lost = |(names, _): &&(&[&str], _)| names.iter().all(|name| is_left_out(name));
    let (words, lost_addresses) = IPV6;
    let addresses = (ipv6 && words.iter().any(|word| is_left_out(word))).then_some(lost_addresses);
    LOSSES.iter().find(lost).map(|(_, loss)| *loss).or(addresses)
}

#[cfg(test)]
mod tests {
    use socktrail_kprobes::Sample;

    use super::*;
    use crate::probes::packets::{Ipv4Out, UdpIpv4In};
    use crate::probes::processes::Woken;
    use crate::probes::sockets::Accepted;
    use crate::probes::{Probe, every};

    /// The format of a record without the fields of these names.
    fn format(fields: &[Field], without: &[&str]) -> Format {
        let mut text = "name: e\nID: 7\nformat:\n".to_owned();
        for (at, field) in fields.iter().filter(|field| !without.contains(&field.name)).enumerate() {
            text += &format!("\tfield:u8 {};\toffset:{at};\tsize:1;\tsigned:0;\n", field.name);
        }
        Format::parse(text.as_bytes()).unwrap()
    }

    fn lost<S: Sample>(left_out: &[&str], ipv6: bool) -> Option<&'static str> {
        without(S::FIELDS, &format(S::FIELDS, left_out), ipv6)
    }

    #[test]
    fn what_a_kernel_does_not_have_is_said() {
        assert_eq!(lost::<Ipv4Out>(&[], true), None);
        assert_eq!(lost::<Ipv4Out>(&["segs_in", "segs_out"], true), Some(UNCOUNTED));
        assert_eq!(lost::<UdpIpv4In>(&["fragment"], true), Some("packets that arrive in fragments count as one"));
        let addresses = ["v6_rcv_saddr_high", "v6_rcv_saddr_low", "v6_daddr_high", "v6_daddr_low"];
        assert_eq!(lost::<Accepted>(&addresses, true), Some("the IPv6 addresses of sockets"));
        assert_eq!(lost::<Accepted>(&addresses[2..], true), Some("the IPv6 addresses of sockets"));
        assert_eq!(lost::<Accepted>(&addresses, false), None);
    }

    #[test]
    fn of_two_forms_of_a_start_one_is_enough() {
        assert_eq!(lost::<Woken>(&["start"], true), None);
        assert_eq!(lost::<Woken>(&["seconds", "nanos"], true), None);
        assert!(lost::<Woken>(&["start", "seconds", "nanos"], true).is_some());
    }

    /// But for the thread's name, whose loss is said where it is documented.
    #[test]
    fn every_field_that_may_be_left_out_has_a_loss() {
        let said = |name: &str| LOSSES.iter().chain([&IPV6]).any(|(names, _)| names.contains(&name)) || name == "comm";
        // The second half of what is said by its first.
        let is_half = |name: &str| name == "nanos";
        // Fetched next to fields that every sample has, for filters only; missing only in older recordings.
        let is_for_filters = |name: &str| ["enqueued", "mac_len", "cloned"].contains(&name);
        for probe in every().flat_map(|(_, probes): &(_, &[Probe])| probes.iter()) {
            for field in probe.fields.iter().filter(|field| field.optional) {
                let is_told = said(field.name) || is_half(field.name) || is_for_filters(field.name);
                assert!(is_told, "{}", field.name);
            }
        }
    }
}
