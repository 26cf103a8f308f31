//! All guesses, each an idea of how the kernel can be made to show where it keeps something.
//!
//! None of them disturbs the host: they talk over loopback only, between addresses and ports that nobody else has, on
//! threads and with sockets of their own; what they change they change for their own thread; and they leave nothing
//! behind, not even a connection that waits for its end.

mod arguments;
mod binprm;
mod cred;
mod flow6;
mod fragments;
mod nameless_file;
mod net_device;
mod path;
mod sender;
mod sk_buff;
mod sock;
mod sock6;
mod socket;
mod socket_events;
mod talk;
mod task;
mod tcp;
mod views;

pub(crate) use talk::{no_ipv6, no_loopback};

use crate::engine::AnyGuess;

/// Every guess there is.
pub(crate) fn all() -> Vec<Box<dyn AnyGuess>> {
    vec![
        Box::new(socket::Socket),
        Box::new(sock::Sock),
        Box::new(sock6::Sock6),
        Box::new(socket_events::SocketEvents),
        Box::new(net_device::NetDevice),
        Box::new(tcp::Tcp),
        Box::new(sk_buff::SkBuff),
        Box::new(sender::Sender),
        Box::new(cred::Cred),
        Box::new(binprm::Binprm),
        Box::new(path::Name),
        Box::new(path::Entry),
        Box::new(path::Mount),
        Box::new(binprm::Opened),
        Box::new(task::Task),
        Box::new(arguments::Arguments { ipv6: false }),
        Box::new(flow6::Flow6),
        Box::new(arguments::Arguments { ipv6: true }),
        Box::new(fragments::Fragments { ipv6: false }),
        Box::new(fragments::Fragments { ipv6: true }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use crate::engine::{Clues, Random, Scene, Shot};
    use std::collections::BTreeMap;
    use std::io;
    use std::net::Ipv4Addr;

    #[test]
    fn every_key_of_the_catalog_has_one_guess_that_gives_it() {
        let mut givers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for guess in all() {
            for key in guess.gives() {
                givers.entry(key).or_default().push(guess.name());
            }
        }
        for (key, _) in catalog::keys() {
            let giver = givers.remove(&key).unwrap_or_default();
            assert_eq!(giver.len(), 1, "{key} is given by {giver:?}");
        }
        assert!(givers.is_empty(), "not in the catalog: {givers:?}");
    }

    /// A scene on which nothing is seen.
    struct Dark(Random);

    impl Scene for Dark {
        fn random(&mut self) -> &mut Random {
            &mut self.0
        }

        fn watch(&mut self, _pid: u32) -> io::Result<()> {
            Ok(())
        }

        fn shots(&mut self) -> Vec<Shot> {
            Vec::new()
        }
    }

    /// Whether this process may do what a guess does.
    fn may(guess: &str) -> bool {
        match guess {
            "cred" => nix::unistd::geteuid().is_root(),
            "fragments" | "fragments6" => talk::raw(Ipv4Addr::LOCALHOST.into()).is_ok(),
            _ => true,
        }
    }

    /// On a thread of its own each, as always, since one of them changes who its thread is.
    #[test]
    fn every_trigger_works_and_nothing_seen_tells_nothing() {
        for mut guess in all() {
            if may(guess.name()) && (!guess.ipv6() || no_ipv6().is_none()) {
                let once = move || (guess.name(), guess.once(&mut Dark(Random::new())));
                let (name, clues) = std::thread::spawn(once).join().expect("no guess panics");
                assert_eq!(clues.unwrap_or_else(|error| panic!("{name}: {error}")), Clues::default(), "{name}");
            }
        }
    }

    #[test]
    fn guesses_that_only_ipv6_needs_say_so() {
        let only_ipv6: BTreeMap<String, bool> = catalog::keys().collect();
        for guess in all() {
            assert!(guess.gives().iter().all(|key| only_ipv6[key] == guess.ipv6()), "{}", guess.name());
        }
    }
}
