//! Installs, tests, replaces and attaches the probes.
//!
//! Probes are first enabled only for this thread, and tested with its own traffic, whose samples do not reach the monitor's rings.
//! Then they are attached to the monitor's rings.

use std::sync::Arc;

use nix::unistd::gettid;
use socktrail_kprobes::bpf::Program;
use socktrail_kprobes::{Clock, Error, Group, Installed, RingOptions, Rings};

use super::accounting::{Conversations, Unaccounted};
use super::drop_functions::{DEFERRED_FREE, DropFunctions};
use super::open::now_of;
use super::self_test::{Hits, SelfTest, Verdict};
use super::{
    Decode, Feature, FeatureStatus, Probe, Probes, Refusal, Wanted, all_features, drop_reasons,
    features::FAULTS_ARE_NO_MISSES, learning, missing_fields, release,
};

impl Probes {
    /// Installs the best working probe for each feature, and attaches it to `rings`, if given. A feature is lost if all its probes
    /// are refused or not hit; the other features still work.
    pub fn install(group: &mut Group, rings: Option<&mut Rings>, wanted: Wanted<'_>) -> Self {
        let all: Vec<_> = all_features().filter(|(feature, _)| wanted.wants(*feature)).collect();
        group.look_up_functions(
            &all.iter().flat_map(|(_, probes)| probes.iter().map(Probe::function)).collect::<Vec<_>>(),
        );
        let mut probes = Self::none();
        let merges_datagrams = learning::merges_datagrams();
        let mut slots: Vec<_> =
            all.iter().map(|(feature, alternatives)| Slot::of(*feature, alternatives, merges_datagrams)).collect();

        // Only flows need these functions, and the list of symbols is long.
        let are_looked_up = wanted.flows && !wanted.masks(DEFERRED_FREE);
        let drop_functions = if are_looked_up { DropFunctions::read() } else { DropFunctions::default() };
        let mut installer = Installer { group, wanted, drop_functions, ring: own_ring() };
        let at_once = |slot: &&mut Slot| !slot.status.feature.is_for_linear_gso();
        slots.iter_mut().filter(at_once).for_each(|slot| slot.install_from(0, &mut installer));
        probes.self_test = installer.test(&mut slots);
        probes.learn(&mut slots, &mut installer);
        // These features are of use only if the linear part of UDP GSO packets has more than the headers. This is known now.
        slots.retain(|slot| !slot.status.feature.is_for_linear_gso() || probes.capabilities.gso_head_len != 0);
        slots.iter_mut().filter(|slot| !at_once(slot)).for_each(|slot| slot.install_from(0, &mut installer));

        if let Some(rings) = rings {
            // Hits that were missed during the self-test do not count, because monitoring has not begun.
            probes.missed_before = (installer.group.misses().unwrap_or_default(), now_of(rings));
            let loaded = installer.load_programs(&slots, rings.clock(), probes.capabilities.gso_head_len);
            probes.conversations = loaded.and_then(|loaded| installer.count(&mut slots, rings, loaded));
            slots.iter_mut().for_each(|slot| slot.attach(rings, &mut installer));
        } else {
            let clock = installer.ring.as_ref().map_or(Clock::Local, Rings::clock);
            let loaded = installer.load_programs(&slots, clock, probes.capabilities.gso_head_len);
            probes.conversations = loaded.map(Arc::new);
        }
        slots.into_iter().for_each(|slot| probes.take(slot, wanted.ipv6));
        probes.decoders.sort_by_key(|(id, _)| *id);
        probes.set_capabilities(merges_datagrams);
        probes
    }

    /// Learns from samples of test traffic what this kernel shows of sockets and datagrams. If that fails, the probes are still
    /// used, and more flows are marked as inexact.
    fn learn(&mut self, slots: &mut [Slot], installer: &mut Installer<'_>) {
        let ring = match &mut installer.ring {
            Ok(ring) => ring,
            Err(error) => {
                tracing::warn!(%error, "cannot test what this kernel shows of sockets and datagrams");
                return;
            }
        };
        for slot in slots {
            let Some(Chosen { installed, decoder, .. }) = &slot.chosen else { continue };
            match slot.status.feature {
                Feature::SocketCreate => {
                    self.capabilities.programs = learning::marks_program_sockets(ring, installed, &**decoder);
                }
                Feature::Ipv4Out => {
                    self.capabilities.gso_head_len = learning::gso_head_len(ring, installed, &**decoder);
                }
                _ => {}
            }
        }
    }

    fn take(&mut self, slot: Slot, ipv6: bool) {
        let Slot { mut status, chosen, .. } = slot;
        if let Some(Chosen { installed, decoder, faulting_reads, .. }) = chosen {
            if faulting_reads > 0 {
                self.faulting.push((status.feature, faulting_reads));
            }
            // The kernel gives event types of 16 bits: `trace_entry.type`.
            self.decoders.push((installed.id() as u16, decoder));
            let lacks = |probe: &Probe| missing_fields::without(probe.fields, installed.format(), ipv6);
            status.lacks = status.probe.map(lacks).unwrap_or_default();
            self.installed.push(installed);
        } else if status.feature.is_absent_without_its_function() && status.has_no_function() {
            return;
        }
        self.statuses.push(status);
    }
}

/// Installs and tests probes.
struct Installer<'a> {
    group: &'a Group,
    wanted: Wanted<'a>,
    drop_functions: DropFunctions,
    /// A ring for this thread only, which enables the probes.
    ring: Result<Rings, Error>,
}

/// A ring for this thread only. It is read only to learn from its samples.
fn own_ring() -> Result<Rings, Error> {
    let mut options = RingOptions::default();
    options.page_exponent = 2;
    Rings::for_thread(gettid().as_raw().cast_unsigned(), &options)
}

impl Installer<'_> {
    /// The filter with which a probe is attached to the monitor's rings.
    fn filter(&self, probe: &Probe) -> Option<String> {
        let filter = probe.filter(self.wanted, self.wanted.filter.exclude_loopback);
        // When the probe was installed, the same addresses were filled in, so this does not fail now.
        filter.and_then(|filter| self.drop_functions.fill_in(&filter))
    }

    /// Tests the installed probes, and replaces those that test traffic does not hit.
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
                    let is_tested = slots.iter().any(|slot| slot.status.hit);
                    test.untested = (!is_tested).then(|| error.to_string());
                    return test;
                }
            }
        }
    }

    /// Loads the programs that count packets in the kernel.
    fn load_programs(&self, slots: &[Slot], clock: Clock, gso_head_len: u32) -> Result<Conversations, Unaccounted> {
        let wanted = self.wanted;
        let consumed = drop_reasons::consumed(self.group.tracefs());
        let (rules, conversations) = wanted.rules(gso_head_len, consumed)?;
        let probes = slots.iter().filter_map(|slot| Some((slot.status.feature, slot.status.probe?, None)));
        Conversations::load(probes, &wanted, &rules, conversations, clock)
    }

    /// Counts packets in the kernel: attaches the probes that take part in that, all of them or none.
    fn count(
        &self,
        slots: &mut [Slot],
        rings: &mut Rings,
        loaded: Conversations,
    ) -> Result<Arc<Conversations>, Unaccounted> {
        loaded.connect(rings)?;
        for (_, feature, program) in loaded.programs() {
            let Some(slot) = slots.iter_mut().find(|slot| slot.status.feature == feature) else { continue };
            if let Err(error) = slot.attach_with_program(rings, self, program) {
                slots.iter_mut().for_each(|slot| slot.detach(rings));
                return Err(error.into());
            }
        }
        Ok(Arc::new(loaded))
    }

    /// Makes one round of traffic. Returns the slots whose probe it should have hit and did not.
    fn not_hit(&self, test: &mut SelfTest, slots: &mut [Slot]) -> Result<Vec<usize>, Error> {
        let before = Hits::now(self.group)?;
        test.make_traffic(self.wanted.ipv6);
        let verdicts = |hits: &Hits| {
            let of_slot = |slot: &Slot| slot.verdict(test, |name| hits.since(&before, name));
            slots.iter().map(of_slot).collect::<Vec<_>>()
        };
        let hits = Hits::wait_until(self.group, |hits| !verdicts(hits).contains(&Verdict::NotHit))?;
        let verdicts = verdicts(&hits);
        for (slot, verdict) in slots.iter_mut().zip(&verdicts) {
            slot.status.hit = *verdict == Verdict::Hit;
        }
        Ok((0..verdicts.len()).filter(|index| verdicts[*index] == Verdict::NotHit).collect())
    }
}

/// A feature, and the probe that serves it so far.
struct Slot {
    status: FeatureStatus,
    alternatives: &'static [Probe],
    chosen: Option<Chosen>,
    /// Whether it is attached to the monitor's rings.
    attached: bool,
}

/// The alternative that is installed.
struct Chosen {
    index: usize,
    /// Whether this is its second installation, because it was not hit after the first.
    reinstalled: bool,
    installed: Installed,
    decoder: Box<dyn Decode>,
    /// How many values are read through a null pointer at each hit that has one. 0 if such hits are not counted.
    faulting_reads: u64,
}

impl Slot {
    fn of(feature: Feature, alternatives: &'static [Probe], kernel_merges_datagrams: bool) -> Self {
        let status = FeatureStatus { kernel_merges_datagrams, ..FeatureStatus::of(feature) };
        Self { status, alternatives, chosen: None, attached: false }
    }

    /// Installs the first alternative that the kernel accepts, from `index` on.
    fn install_from(&mut self, index: usize, installer: &mut Installer<'_>) {
        for (index, probe) in self.alternatives.iter().enumerate().skip(index) {
            if release() < probe.since {
                continue;
            }
            match probe.install(self.status.feature, installer) {
                Ok((installed, decoder)) => {
                    self.status.probe = Some(probe);
                    self.chosen = Some(Chosen { index, reinstalled: false, installed, decoder, faulting_reads: 0 });
                    return;
                }
                Err(refusal) => self.status.refusals.push(refusal),
            }
        }
    }

    fn verdict(&self, test: &SelfTest, hits: impl Fn(&str) -> Option<u64>) -> Verdict {
        match (self.status.probe, &self.chosen) {
            // A probe that was hit once needs no further test.
            _ if self.status.hit => Verdict::Hit,
            (Some(probe), Some(chosen)) => test.verdict(probe.hit_by, hits(chosen.installed.name())),
            _ => Verdict::Unknown,
        }
    }

    /// Installs the probe anew, because it was not hit. If this has been done before, installs the next alternative.
    fn replace(&mut self, installer: &mut Installer<'_>) {
        let (Some(probe), Some(Chosen { index, reinstalled, installed, .. })) =
            (self.status.probe.take(), self.chosen.take())
        else {
            return;
        };
        if let Ok(ring) = &mut installer.ring {
            ring.detach(&installed);
        }
        // Removes it, so that its name is free.
        drop(installed);
        if reinstalled {
            self.status.refusals.push(Refusal::NotHit(probe.function(), probe.hit_by));
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
        while let (false, Some(probe), Some(chosen)) = (self.attached, self.status.probe, &mut self.chosen) {
            chosen.count_faults(probe, rings);
            let Chosen { index, installed, .. } = chosen;
            let Err(error) = rings.attach(installed, installer.filter(probe).as_deref()) else {
                self.attached = true;
                return;
            };
            if let Ok(ring) = &mut installer.ring {
                ring.detach(installed);
            }
            let next = *index + 1;
            self.status.refusals.push(error.into());
            (self.status.probe, self.chosen, self.status.hit) = (None, None, false);
            self.install_from(next, installer);
        }
    }
}

impl Slot {
    /// Attaches the probe to the monitor's rings, with a program that counts its hits.
    fn attach_with_program(
        &mut self,
        rings: &mut Rings,
        installer: &Installer<'_>,
        program: &Program,
    ) -> Result<(), Error> {
        if let (Some(probe), Some(chosen)) = (self.status.probe, &mut self.chosen) {
            chosen.count_faults(probe, rings);
            let installed = &chosen.installed;
            rings.attach_with_program(installed, installer.filter(probe).as_deref(), program)?;
            self.attached = true;
        }
        Ok(())
    }

    fn detach(&mut self, rings: &mut Rings) {
        if let Some(Chosen { installed, .. }) = self.chosen.as_ref().filter(|_| self.attached) {
            rings.detach(installed);
            self.attached = false;
        }
    }
}

impl Chosen {
    /// Where the kernel counts a read that faults as a missed hit, counts the hits whose pointer is null. This must begin before
    /// the probe is attached. Without it, these faults are taken for missed hits.
    fn count_faults(&mut self, probe: &Probe, rings: &mut Rings) {
        let reads = probe.reads_through_nullable(self.installed.format());
        let Some(pointer) = probe.nullable.filter(|_| reads > 0 && release() < FAULTS_ARE_NO_MISSES) else { return };
        match rings.count_hits(&self.installed, &format!("{pointer}==0")) {
            Ok(()) => self.faulting_reads = reads as u64,
            Err(error) => tracing::debug!(%error, "reads that fault are taken for missed hits"),
        }
    }
}

impl Probe {
    /// Installs the probe, and enables it for this thread.
    fn install(
        &self,
        feature: Feature,
        installer: &mut Installer<'_>,
    ) -> Result<(Installed, Box<dyn Decode>), Refusal> {
        let wanted = installer.wanted;
        if wanted.masks(self.function()) {
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

    /// The trace event filter, which chooses the hits that become samples.
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
    use crate::source::kprobes::Traffic;

    #[test]
    fn every_probe_that_shows_flows_is_tested_by_traffic_of_its_own() {
        for (feature, alternatives) in all_features() {
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
    fn the_refusal_of_a_probe_that_is_not_hit_names_the_traffic() {
        let refusal = Refusal::NotHit("ip_local_out", &[Traffic::UdpIpv4, Traffic::TcpIpv4]);
        let said = "the probe on ip_local_out was installed, but not hit by a datagram over IPv4, a TCP connection over IPv4: ";
        assert!(refusal.to_string().starts_with(said), "{refusal}");
    }
}
