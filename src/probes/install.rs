//! How probes get into the kernel: install, test, replace, attach.
//!
//! All of them are first switched on for this thread alone, and tested by traffic of its own: what they see of it reaches
//! no ring of a monitor. Those that stay are then attached to the monitor's rings.

use nix::unistd::gettid;
use socktrail_kprobes::{Error, Group, Installed, RingOptions, Rings};

use super::drop_functions::DropFunctions;
use super::self_test::{Hits, SelfTest, Verdict};
use super::{Decode, Feature, Probe, Probes, Refusal, Served, Wanted, every, lacking, learning, release};

impl Probes {
    /// Installs the best probe for each feature that sees what it should, and attaches it to `rings` where there are any.
    /// A feature whose probes are all refused, or not hit, is lost, and nothing else.
    pub fn install(group: &mut Group, rings: Option<&mut Rings>, wanted: Wanted<'_>) -> Self {
        let all: Vec<_> = every().filter(|(feature, _)| wanted.wants(*feature)).collect();
        group.learn(&all.iter().flat_map(|(_, probes)| probes.iter().map(Probe::function)).collect::<Vec<_>>());
        let mut probes = Self::none();
        let merges = learning::merges_datagrams();
        let mut slots: Vec<_> =
            all.iter().map(|(feature, alternatives)| Slot::of(*feature, alternatives, merges)).collect();

        // Only flows have packets. The list is long.
        let drop_functions = if wanted.flows { DropFunctions::read() } else { DropFunctions::default() };
        let mut installer = Installer { group, wanted, drop_functions, ring: own_ring() };
        let at_once = |slot: &&mut Slot| !slot.served.feature.is_for_joined_heads();
        slots.iter_mut().filter(at_once).for_each(|slot| slot.install_from(0, &mut installer));
        probes.self_test = installer.test(&mut slots);
        probes.learn(&mut slots, &mut installer);
        // Whether these are of use has just been learnt.
        slots.retain(|slot| !slot.served.feature.is_for_joined_heads() || probes.sight.joined_head != 0);
        slots.iter_mut().filter(|slot| !at_once(slot)).for_each(|slot| slot.install_from(0, &mut installer));

        if let Some(rings) = rings {
            // Hits that were missed during the self-test are no loss, because nobody watched yet.
            probes.missed_before = (installer.group.misses().unwrap_or_default(), rings.now());
            slots.iter_mut().for_each(|slot| slot.attach(rings, &mut installer));
        }
        slots.into_iter().for_each(|slot| probes.take(slot, wanted.ipv6));
        probes.decoders.sort_by_key(|(id, _)| *id);
        probes.sight_of_features(merges);
        probes
    }

    /// Learns by samples of own traffic what else this kernel tells. What cannot be learnt is not told, and flows are marked
    /// for it: no reason to go without a feature.
    fn learn(&mut self, slots: &mut [Slot], installer: &mut Installer<'_>) {
        let ring = match &mut installer.ring {
            Ok(ring) => ring,
            Err(error) => {
                tracing::warn!(%error, "what this kernel tells of sockets and datagrams could not be tried out");
                return;
            }
        };
        for slot in slots {
            let Some(Chosen { installed, decoder, .. }) = &slot.chosen else { continue };
            match slot.served.feature {
                Feature::SocketCreate => self.sight.programs = learning::tells_programs(ring, installed, &**decoder),
                Feature::Ipv4Out => self.sight.joined_head = learning::joined_head(ring, installed, &**decoder),
                _ => {}
            }
        }
    }

    fn take(&mut self, slot: Slot, ipv6: bool) {
        let Slot { mut served, chosen, .. } = slot;
        if let Some(Chosen { installed, decoder, .. }) = chosen {
            // The kernel gives event types of 16 bits: `trace_entry.type`.
            self.decoders.push((installed.id() as u16, decoder));
            served.lacks = served.by.and_then(|probe| lacking::without(probe.fields, installed.format(), ipv6));
            self.installed.push(installed);
        } else if served.feature.comes_with_its_function() && served.has_no_function() {
            return;
        }
        self.served.push(served);
    }
}

/// Installs and tests probes.
struct Installer<'a> {
    group: &'a Group,
    wanted: Wanted<'a>,
    drop_functions: DropFunctions,
    /// Of this thread alone. The probes are switched on through it.
    ring: Result<Rings, Error>,
}

/// A ring for what this thread does. It is read only for what is learnt.
fn own_ring() -> Result<Rings, Error> {
    let mut options = RingOptions::default();
    options.page_exponent = 2;
    Rings::for_thread(gettid().as_raw().cast_unsigned(), &options)
}

impl Installer<'_> {
    /// Tests the probes that are installed, and replaces those that own traffic does not hit.
    fn test(&mut self, slots: &mut [Slot]) -> SelfTest {
        let mut test = SelfTest::default();
        if let Err(error) = &self.ring {
            test.untested = Some(error.to_string());
            return test;
        }
        // This ends: each round uses up an attempt or an alternative of every probe that was not hit.
        loop {
            match self.not_hit(&mut test, slots) {
                Ok(not_hit) if not_hit.is_empty() => return test,
                Ok(not_hit) => not_hit.into_iter().for_each(|index| slots[index].replace(self)),
                Err(error) => {
                    tracing::warn!(%error, "the self-test could not be finished");
                    let is_tested = slots.iter().any(|slot| slot.served.hit);
                    test.untested = (!is_tested).then(|| error.to_string());
                    return test;
                }
            }
        }
    }

    /// One round of traffic: which slots have a probe that it should have hit and did not.
    fn not_hit(&self, test: &mut SelfTest, slots: &mut [Slot]) -> Result<Vec<usize>, Error> {
        let before = Hits::now(self.group)?;
        test.make_traffic(self.wanted.ipv6);
        let verdicts = |hits: &Hits| {
            let of_slot = |slot: &Slot| slot.verdict(test, |name| hits.since(&before, name));
            slots.iter().map(of_slot).collect::<Vec<_>>()
        };
        let hits = Hits::once(self.group, |hits| !verdicts(hits).contains(&Verdict::NotHit))?;
        let verdicts = verdicts(&hits);
        for (slot, verdict) in slots.iter_mut().zip(&verdicts) {
            slot.served.hit = *verdict == Verdict::Hit;
        }
        Ok((0..verdicts.len()).filter(|index| verdicts[*index] == Verdict::NotHit).collect())
    }
}

/// A feature, and the probe that serves it so far.
struct Slot {
    served: Served,
    alternatives: &'static [Probe],
    chosen: Option<Chosen>,
}

/// One of the alternatives, installed.
struct Chosen {
    index: usize,
    /// Whether it has been installed before, and was not hit.
    reinstalled: bool,
    installed: Installed,
    decoder: Box<dyn Decode>,
}

impl Slot {
    fn of(feature: Feature, alternatives: &'static [Probe], merges: bool) -> Self {
        let served = Served { feature, by: None, refusals: Vec::new(), lacks: None, merges, hit: false };
        Self { served, alternatives, chosen: None }
    }

    /// Installs the first alternative from `index` on that the kernel takes.
    fn install_from(&mut self, index: usize, installer: &mut Installer<'_>) {
        for (index, probe) in self.alternatives.iter().enumerate().skip(index) {
            if release() < probe.since {
                continue;
            }
            match probe.install(self.served.feature, installer) {
                Ok((installed, decoder)) => {
                    self.served.by = Some(probe);
                    self.chosen = Some(Chosen { index, reinstalled: false, installed, decoder });
                    return;
                }
                Err(refusal) => self.served.refusals.push(refusal),
            }
        }
    }

    fn verdict(&self, test: &SelfTest, hits: impl Fn(&str) -> Option<u64>) -> Verdict {
        match (self.served.by, &self.chosen) {
            // What has fired once needs no other proof.
            _ if self.served.hit => Verdict::Hit,
            (Some(probe), Some(chosen)) => test.verdict(probe.hit_by, hits(chosen.installed.name())),
            _ => Verdict::Unknown,
        }
    }

    /// Installs a probe that was not hit anew; if that has been done, the next alternative.
    fn replace(&mut self, installer: &mut Installer<'_>) {
        let (Some(probe), Some(Chosen { index, reinstalled, installed, .. })) =
            (self.served.by.take(), self.chosen.take())
        else {
            return;
        };
        if let Ok(ring) = &mut installer.ring {
            ring.detach(&installed);
        }
        // Removes it, so that its name is free.
        drop(installed);
        if reinstalled {
            self.served.refusals.push(Refusal::NotHit(probe.function(), probe.hit_by));
            self.install_from(index + 1, installer);
        } else {
            tracing::debug!(function = probe.function(), "a probe was not hit, and is installed anew");
            self.install_from(index, installer);
            if let Some(chosen) = self.chosen.as_mut().filter(|chosen| chosen.index == index) {
                chosen.reinstalled = true;
            }
        }
    }

    /// Attaches the probe to the monitor's rings, or the first alternative that can be attached.
    fn attach(&mut self, rings: &mut Rings, installer: &mut Installer<'_>) {
        let wanted = installer.wanted;
        while let (Some(probe), Some(Chosen { index, installed, .. })) = (self.served.by, &self.chosen) {
            let filter = probe.filter(wanted, !wanted.loopback);
            // The same addresses have been filled in when it was installed.
            let filter = filter.and_then(|filter| installer.drop_functions.fill_in(&filter));
            let Err(error) = rings.attach(installed, filter.as_deref()) else { return };
            if let Ok(ring) = &mut installer.ring {
                ring.detach(installed);
            }
            let next = index + 1;
            self.served.refusals.push(error.into());
            (self.served.by, self.chosen, self.served.hit) = (None, None, false);
            self.install_from(next, installer);
        }
    }
}

impl Probe {
    /// Installs it, and switches it on for this thread.
    fn install(
        &self,
        feature: Feature,
        installer: &mut Installer<'_>,
    ) -> Result<(Installed, Box<dyn Decode>), Refusal> {
        let wanted = installer.wanted;
        if wanted.mask.iter().any(|masked| masked == self.function()) {
            return Err(Refusal::Masked(self.function()));
        }
        let filter = match self.filter(wanted, false) {
            Some(filter) => Some(installer.drop_functions.fill_in(&filter).ok_or(Refusal::AddressesHidden)?),
            None => None,
        };
        let installed = installer.group.install(&feature.to_string(), self.target, self.fetches, &wanted)?;
        let decoder = (self.decoder)(installed.format())?;
        if let Ok(ring) = &mut installer.ring {
            ring.attach(&installed, filter.as_deref())?;
        }
        Ok((installed, decoder))
    }

    /// Which of its hits become samples.
    fn filter(&self, wanted: Wanted<'_>, without_loopback: bool) -> Option<String> {
        let only = if wanted.flows { self.filter } else { self.datagrams.or(self.filter) };
        match (only, self.not_loopback.filter(|_| without_loopback)) {
            (Some(filter), Some(not_loopback)) => Some(format!("({filter})&&{not_loopback}")),
            (Some(filter), None) => Some(filter.to_owned()),
            (None, not_loopback) => not_loopback.map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::Traffic;

    #[test]
    fn every_probe_that_shows_flows_is_tested_by_traffic_of_its_own() {
        for (feature, alternatives) in every() {
            let name = feature.to_string();
            let traffic = |probe: &Probe| probe.hit_by.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>();
            let of_first = traffic(&alternatives[0]);
            assert!(!feature.shows_flows() || !of_first.is_empty(), "{name} is not tested");
            for probe in *alternatives {
                assert_eq!(traffic(probe), of_first, "{name} on {}", probe.function());
                let of_ipv6 = |one: &Traffic| matches!(one, Traffic::UdpIpv6 | Traffic::TcpIpv6);
                assert!(probe.hit_by.iter().all(|one| of_ipv6(one) == feature.is_ipv6()), "{name}: {of_first:?}");
                for (protocol, word) in [("udp_", "Udp"), ("tcp_ipv", "Tcp")] {
                    let is_of = !name.starts_with(protocol) || of_first.iter().all(|one| one.starts_with(word));
                    assert!(is_of, "{name}: {of_first:?}");
                }
            }
        }
    }

    #[test]
    fn a_probe_that_is_not_hit_is_told_with_the_traffic() {
        let refusal = Refusal::NotHit("ip_local_out", &[Traffic::UdpIpv4, Traffic::TcpIpv4]);
        let said = "the probe on ip_local_out was installed, but not hit by a datagram over IPv4, a TCP connection over IPv4: ";
        assert!(refusal.to_string().starts_with(said), "{refusal}");
    }
}
