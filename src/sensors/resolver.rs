//! Looks up names of hosts in separate threads.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crossbeam_channel::{Receiver, Sender, bounded};

/// The number of concurrent lookups.
const THREADS: usize = 4;
/// The maximum number of waiting lookups.
const QUEUE: usize = 1024;

/// Looks up names of addresses with this host's resolver, as `nsswitch.conf` and `resolv.conf` configure it.
#[derive(Debug)]
pub struct Resolver {
    questions: Sender<IpAddr>,
    answers: Receiver<(IpAddr, Option<String>)>,
}

impl Resolver {
    /// Starts the threads. They end once this is dropped and their present lookups are done.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start() -> io::Result<Self> {
        Self::with(look_up)
    }

    fn with(look_up: fn(IpAddr) -> Option<String>) -> io::Result<Self> {
        const NAME: &str = "socktrail-hosts";
        let (questions, requests) = bounded(QUEUE);
        let (results, answers) = bounded(QUEUE);
        for _ in 0..THREADS {
            let (requests, results) = (Receiver::clone(&requests), Sender::clone(&results));
            let run = move || {
                while let Ok(ip) = requests.recv() {
                    if results.send((ip, look_up(ip))).is_err() {
                        return;
                    }
                }
            };
            std::thread::Builder::new().name(NAME.to_owned()).spawn(run)?;
        }
        Ok(Self { questions, answers })
    }

    /// Asks for the name of an address. Returns false if too many lookups are waiting.
    pub fn ask(&self, ip: IpAddr) -> bool {
        self.questions.try_send(ip).is_ok()
    }

    /// The answers since the last call; `None` for an address without a name.
    pub fn answers(&self) -> impl Iterator<Item = (IpAddr, Option<String>)> {
        self.answers.try_iter()
    }
}

/// Calls `getnameinfo(3)`. The result is the same for an address without a name and for a failure.
fn look_up(ip: IpAddr) -> Option<String> {
    let (host, _) = dns_lookup::getnameinfo(&SocketAddr::new(ip, 0), nix::libc::NI_NAMEREQD).ok()?;
    Some(host)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use super::*;

    fn wait_for(resolver: &Resolver, count: usize) -> Vec<(IpAddr, Option<String>)> {
        let (mut answers, start) = (Vec::new(), Instant::now());
        while answers.len() < count && start.elapsed() < Duration::from_secs(60) {
            answers.extend(resolver.answers());
            sleep(Duration::from_millis(1));
        }
        answers.sort();
        answers
    }

    #[test]
    fn each_question_is_answered() {
        let resolver = Resolver::with(|ip| (!ip.is_loopback()).then(|| format!("host-{ip}"))).unwrap();
        let (local, other) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 0, 2, 1));
        assert!(resolver.ask(local.into()) && resolver.ask(other.into()));
        let expected = [(local.into(), None), (other.into(), Some("host-192.0.2.1".to_owned()))];
        assert_eq!(wait_for(&resolver, 2), expected);
    }

    #[test]
    fn a_flood_of_questions_neither_blocks_nor_grows() {
        let resolver = Resolver::with(|_| {
            sleep(Duration::from_secs(10));
            None
        })
        .unwrap();
        let started = Instant::now();
        let asked = (0..5000).filter(|number| resolver.ask(Ipv4Addr::from_bits(*number).into())).count();
        assert!((QUEUE..=QUEUE + THREADS).contains(&asked), "{asked}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn this_host_knows_itself() {
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let listed = hosts.lines().any(|line| line.split_whitespace().next() == Some("127.0.0.1"));
        assert!(look_up(Ipv4Addr::LOCALHOST.into()).is_some() || !listed);
    }
}
