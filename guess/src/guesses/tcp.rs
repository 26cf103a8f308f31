//! The counters of segments in a `tcp_sock`.

use super::loopback::Connection;
use super::sock::released_sock_needs;
use crate::engine::{Call, Context, Evidence, Guess, MAX_WINDOW, Probe, WORD};
use crate::sys;
use std::io;

/// The offset from which each attempt captures a `tcp_sock`, the likeliest first.
const STARTS: [u32; 3] = if WORD == 4 { [328, 1344, 2360] } else { [1344, 2360, 328] };

/// Both ends of a connection exchange random numbers of messages. Each socket counts its segments, and `TCP_INFO`,
/// which has a fixed layout, gives the counts. They must be in the `tcp_sock`s. The kernel also counts segments with
/// data (`data_segs_in`); these counts differ, because some segments have no data.
#[derive(Debug)]
pub(super) struct Tcp;

/// How many segments one end has received and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    received: u32,
    sent: u32,
}

impl Guess for Tcp {
    /// The counts of both ends, in the order in which they are closed.
    type Expected = [Counts; 2];

    fn name(&self) -> &'static str {
        "tcp"
    }

    fn needs(&self) -> Vec<String> {
        released_sock_needs()
    }

    fn gives(&self) -> Vec<String> {
        ["tcp_sock.segs_in", "tcp_sock.segs_out"].map(str::to_owned).into()
    }

    fn attempts(&self) -> u32 {
        STARTS.len() as u32
    }

    fn probes(&self, attempt: u32) -> Vec<Probe> {
        let start = STARTS[attempt as usize];
        vec![Probe::on("inet_release").words("tcp", "+{socket.sk}({sock})", start..start + MAX_WINDOW)]
    }

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<[Counts; 2]> {
        let mut connection = Connection::open(context.random(), false)?;
        connection.ask(context.random().within(3..=30))?;
        connection.reply(context.random().within(3..=30))?;
        let Connection { client, server, listener } = connection;
        let near = counts(&sys::tcp_info(&client)?)?;
        drop(client);
        // The server has meanwhile received one more segment: the reset.
        let far = counts(&sys::tcp_info(&server)?)?;
        drop(server);
        drop(listener);
        Ok([near, far])
    }

    fn solve(&self, expected: &[Counts; 2], calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        if let [near, far, _listener] = calls {
            for (counts, call) in expected.iter().zip([near, far]) {
                let tcp = call.view("tcp");
                evidence.one_of("tcp_sock.segs_in", tcp.find_u32(counts.received));
                evidence.one_of("tcp_sock.segs_out", tcp.find_u32(counts.sent));
            }
        }
        evidence
    }
}

/// `tcpi_segs_in` and `tcpi_segs_out`.
fn counts(info: &[u8]) -> io::Result<Counts> {
    let at = |offset: usize| Some(u32::from_ne_bytes(*info.get(offset..)?.first_chunk()?));
    let counts = at(140).zip(at(136)).map(|(received, sent)| Counts { received, sent });
    counts.ok_or_else(|| io::Error::other("this kernel does not count segments (Linux 4.2 and later do)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Window;

    fn end(counts: Counts) -> Call {
        let mut tcp = Window::new(STARTS[0], vec![0; MAX_WINDOW as usize]);
        tcp.write(1456, &counts.received.to_ne_bytes());
        tcp.write(1480, &counts.sent.to_ne_bytes());
        Call::of("inet_release", vec![("tcp", tcp)])
    }

    #[test]
    fn counts_are_found_at_both_ends() {
        let sent = [Counts { received: 17, sent: 31 }, Counts { received: 32, sent: 16 }];
        let calls = [end(sent[0]), end(sent[1]), end(Counts { received: 1, sent: 0 })];
        let evidence = Tcp.solve(&sent, &calls);
        assert_eq!(evidence.values("tcp_sock.segs_in"), [1456]);
        assert_eq!(evidence.values("tcp_sock.segs_out"), [1480]);
    }

    #[test]
    fn a_kernel_without_counts_is_an_error() {
        assert!(counts(&[0; 104]).is_err());
        let mut info = [0; 144];
        info[136] = 5;
        info[140] = 6;
        assert_eq!(counts(&info).unwrap(), Counts { received: 6, sent: 5 });
    }
}
