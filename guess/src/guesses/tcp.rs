//! The counters of segments in a `tcp_sock`.

use super::sock::window_needs;
use super::talk::Connection;
use crate::engine::{Clues, Guess, Probe, Scene, Shot, WINDOW, WORD};
use crate::sys;
use std::io;

/// From where on a `tcp_sock` is looked at in each attempt, the likeliest first.
const STARTS: [u32; 3] = if WORD == 4 { [328, 1344, 2360] } else { [1344, 2360, 328] };

/// A connection counts its segments, and tells its counts by `TCP_INFO`, whose form is fixed. So both ends of one exchange
/// random numbers of messages; each count must then be found in the `sock` of its end. Segments with data are counted
/// as well, but those without, of which there are some, tell the counts apart.
#[derive(Debug)]
pub(super) struct Tcp;

/// Segments that one end has received and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    received: u32,
    sent: u32,
}

impl Guess for Tcp {
    /// The counts of the ends, in the order in which they were closed.
    type Sent = [Counts; 2];

    fn name(&self) -> &'static str {
        "tcp"
    }

    fn needs(&self) -> Vec<String> {
        window_needs()
    }

    fn gives(&self) -> Vec<String> {
        ["tcp_sock.segs_in", "tcp_sock.segs_out"].map(str::to_owned).into()
    }

    fn attempts(&self) -> u32 {
        STARTS.len() as u32
    }

    fn probes(&self, attempt: u32) -> Vec<Probe> {
        let start = STARTS[attempt as usize];
        vec![Probe::on("inet_release").words("tcp", "+{socket.sk}({sock})", start..start + WINDOW)]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<[Counts; 2]> {
        let mut connection = Connection::open(stage.random(), false)?;
        connection.ask(stage.random().within(3..=30))?;
        connection.reply(stage.random().within(3..=30))?;
        let Connection { client, server, listener } = connection;
        let near = counts(&sys::tcp_info(&client)?)?;
        drop(client);
        // It has received one more meanwhile: the reset.
        let far = counts(&sys::tcp_info(&server)?)?;
        drop(server);
        drop(listener);
        Ok([near, far])
    }

    fn solve(&self, sent: &[Counts; 2], shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        if let [near, far, _listener] = shots {
            for (counts, shot) in sent.iter().zip([near, far]) {
                let tcp = shot.view("tcp");
                clues.allow("tcp_sock.segs_in", tcp.find_u32(counts.received));
                clues.allow("tcp_sock.segs_out", tcp.find_u32(counts.sent));
            }
        }
        clues
    }
}

/// `tcpi_segs_in` and `tcpi_segs_out`.
fn counts(info: &[u8]) -> io::Result<Counts> {
    let at = |offset: usize| Some(u32::from_ne_bytes(*info.get(offset..)?.first_chunk()?));
    let counts = at(140).zip(at(136)).map(|(received, sent)| Counts { received, sent });
    counts.ok_or_else(|| io::Error::other("this kernel does not count segments (Linux 4.2 does)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Window;

    fn end(counts: Counts) -> Shot {
        let mut tcp = Window::new(STARTS[0], vec![0; WINDOW as usize]);
        tcp.write(1456, &counts.received.to_ne_bytes());
        tcp.write(1480, &counts.sent.to_ne_bytes());
        Shot::of("inet_release", vec![("tcp", tcp)])
    }

    #[test]
    fn counts_are_found_at_both_ends() {
        let sent = [Counts { received: 17, sent: 31 }, Counts { received: 32, sent: 16 }];
        let shots = [end(sent[0]), end(sent[1]), end(Counts { received: 1, sent: 0 })];
        let clues = Tcp.solve(&sent, &shots);
        assert_eq!(clues.of("tcp_sock.segs_in"), [1456]);
        assert_eq!(clues.of("tcp_sock.segs_out"), [1480]);
    }

    #[test]
    fn a_kernel_that_does_not_count_is_told() {
        assert!(counts(&[0; 104]).is_err());
        let mut info = [0; 144];
        info[136] = 5;
        info[140] = 6;
        assert_eq!(counts(&info).unwrap(), Counts { received: 6, sent: 5 });
    }
}
