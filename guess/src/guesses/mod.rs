//! All guesses. Each makes the kernel handle values that it knows, and looks for them in kernel memory.
//!
//! No guess disturbs the host. Guesses send packets only over loopback, between addresses and ports that are not in
//! use, on threads and with sockets of their own. What they change, they change only for their own thread. They leave
//! nothing behind, not even a connection in TIME_WAIT.

mod anonymous_file;
mod arguments;
mod binprm;
mod cred;
mod flow6;
mod fragments;
mod loopback;
mod net_device;
mod path;
mod sender;
mod sk_buff;
mod sock;
mod sock6;
mod socket;
mod socket_events;
mod task;
mod tcp;
mod views;

pub(crate) use loopback::{no_ipv6, no_loopback};

use crate::engine::AnyGuess;

/// All guesses.
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
        Box::new(path::DentryName),
        Box::new(path::DentryLinks),
        Box::new(path::Mount),
        Box::new(binprm::BinprmFile),
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
    use crate::engine::{Evidence, NoCalls, Random};
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    #[test]
    fn every_key_of_the_catalog_is_given_by_one_guess() {
        let mut givers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for guess in all() {
            for key in guess.gives() {
                givers.entry(key).or_default().push(guess.name());
            }
        }
        for key in catalog::keys().map(|key| key.name) {
            let giver = givers.remove(&key).unwrap_or_default();
            assert_eq!(giver.len(), 1, "{key} is given by {giver:?}");
        }
        assert!(givers.is_empty(), "not in the catalog: {givers:?}");
    }

    /// Whether this process has the privileges that a guess needs.
    fn is_permitted(guess: &str) -> bool {
        match guess {
            "cred" => nix::unistd::geteuid().is_root(),
            "fragments" | "fragments6" => loopback::raw(Ipv4Addr::LOCALHOST.into()).is_ok(),
            _ => true,
        }
    }

    /// Each guess runs on a thread of its own, as always, because one of them changes the ids of its thread.
    #[test]
    fn every_trigger_works_and_without_calls_there_is_no_evidence() {
        for mut guess in all() {
            if is_permitted(guess.name()) && (!guess.ipv6() || no_ipv6().is_none()) {
                let run = move || (guess.name(), guess.run_once(&mut NoCalls(Random::new())));
                let (name, evidence) = std::thread::spawn(run).join().expect("a guess should not panic");
                assert_eq!(evidence.unwrap_or_else(|error| panic!("{name}: {error}")), Evidence::default(), "{name}");
            }
        }
    }

    #[test]
    fn guesses_and_keys_agree_on_the_need_for_ipv6() {
        let only_ipv6: BTreeMap<String, bool> = catalog::keys().map(|key| (key.name, key.only_ipv6)).collect();
        for guess in all() {
            assert!(guess.gives().iter().all(|key| only_ipv6[key] == guess.ipv6()), "{}", guess.name());
        }
    }
}
