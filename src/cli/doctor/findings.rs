//! Draws conclusions from facts: whether flows can be seen. Does no I/O.

use socktrail::monitor::DisabledSwitch;
use socktrail_kprobes::Clock;

use super::facts::{Facts, Limit, Tracefs, capability};
use super::finding::{Finding, State};
use crate::cli::exit::Status;

/// Checks all facts, the most important first: a later problem matters only after the earlier ones are solved.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        kernel(facts),
        kprobes(facts),
        lockdown(facts),
        privileges(facts),
        tracefs(facts),
        perf(facts),
        clock(facts),
        limits(facts),
        ipv6(facts),
        btf(facts),
        users(facts),
        Finding::ok("confinement", format!("of an agent: {}", facts.confinement)),
    ];
    findings.extend(facts.agents.iter().map(|agent| Finding::ok("agent", agent)));
    findings
}

/// The findings with which no flow can be seen, the most important first.
pub fn blocking(findings: &[Finding]) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(|finding| finding.state == State::Lost)
}

fn kernel(facts: &Facts) -> Finding {
    let found = format!("Linux {} on {}", facts.release, facts.architecture);
    let subject = "kernel";
    // As uname(2) reports it: on 32-bit x86, the name depends on the processor.
    let is_known = ["x86_64", "aarch64", "i386", "i486", "i586", "i686"].contains(&&*facts.architecture);
    match (is_known, facts.version()) {
        (true, (3, ..12) | (..3, _)) => Finding::degraded(
            subject,
            found,
            "perhaps all flows: kernels before 3.12 work only if the distribution has backported what is needed",
            "try it, or boot a kernel from 3.12 on",
        ),
        (true, _) => Finding::ok(subject, found),
        (false, _) => Finding::lost(
            subject,
            Status::Kernel,
            found,
            "use a machine with x86_64, aarch64 or i686: other architectures are not supported",
        ),
    }
}

fn kprobes(facts: &Facts) -> Finding {
    let subject = "kprobes";
    if facts.kprobes == Some(false) && facts.btf {
        return Finding::degraded(
            subject,
            "none: flows are observed by programs at a control group (socket.backend)",
            "socket events and sensors; of flows, what docs/accuracy.md lists for this backend",
            "to see all, boot a kernel with CONFIG_KPROBES=y and CONFIG_KPROBE_EVENTS=y, such as a distribution's",
        );
    }
    if facts.kprobes == Some(false) {
        return Finding::lost(
            subject,
            Status::Kernel,
            "this kernel has no kprobes: it was built without CONFIG_KPROBE_EVENTS",
            "boot a kernel with CONFIG_KPROBES=y and CONFIG_KPROBE_EVENTS=y, such as a \
             distribution's, on this host or in a virtual machine; no privilege or setting can replace it",
        );
    }
    if let Some(finding) = switches(facts, subject) {
        return finding;
    }
    match facts.kprobes {
        Some(_) => Finding::ok(subject, "available"),
        None => Finding::degraded(
            subject,
            "unknown: tracefs cannot be read",
            "perhaps all flows",
            "run socktrail doctor as root",
        ),
    }
}

/// Kernel switches that keep installed probes from firing.
fn switches(facts: &Facts, subject: &'static str) -> Option<Finding> {
    if let Some(disabled) = facts.switches.disabling_probes(&facts.architecture) {
        return Some(Finding::lost(subject, Status::Kernel, disabled.to_string(), disabled.remedy()));
    }
    let remedy = DisabledSwitch::Ftrace.remedy();
    let degraded = || Finding::degraded(subject, "kernel.ftrace_enabled is 0", "all flows on some kernels", remedy);
    (facts.switches.ftrace == Some(false)).then(degraded)
}

/// Linux has lockdown from 5.4 on. `integrity` allows kprobes; `confidentiality` forbids kprobes, tracefs and perf.
fn lockdown(facts: &Facts) -> Finding {
    let subject = "lockdown";
    match facts.lockdown.as_deref() {
        Some("confidentiality") => Finding::lost(
            subject,
            Status::Kernel,
            "the kernel is locked down in mode confidentiality, which forbids kprobes to all users",
            "boot without lockdown=confidentiality; if Secure Boot enables it, boot with lockdown=integrity",
        ),
        Some(mode) => Finding::ok(subject, format!("mode {mode}")),
        None => Finding::ok(subject, "not active"),
    }
}

fn privileges(facts: &Facts) -> Finding {
    let subject = "privileges";
    let found = match facts.euid {
        0 => "root".to_owned(),
        uid => format!("user {uid}"),
    };
    let reads_tracefs = facts.euid == 0 || facts.has_any(capability::DAC_OVERRIDE);
    let opens_perf = facts.has_any(capability::SYS_ADMIN | capability::PERFMON);
    match (reads_tracefs, opens_perf) {
        (true, true) if facts.has_any(capability::SYS_PTRACE) => Finding::ok(subject, found),
        (true, true) => Finding::degraded(
            subject,
            format!("{found} without CAP_SYS_PTRACE"),
            "program, arguments and container of processes that are already running when Socktrail starts",
            "grant CAP_SYS_PTRACE",
        ),
        (true, false) => Finding::lost(
            subject,
            Status::Privileges,
            format!("{found} without CAP_SYS_ADMIN and CAP_PERFMON: perf events cannot be opened"),
            "grant CAP_SYS_ADMIN (from Linux 5.8 on, CAP_PERFMON is enough), or make the container privileged",
        ),
        (false, _) => Finding::lost(
            subject,
            Status::Privileges,
            format!("{found}: only root can install probes"),
            "run as root: sudo socktrail …",
        ),
    }
}

fn tracefs(facts: &Facts) -> Finding {
    let subject = "tracefs";
    match &facts.tracefs {
        Tracefs::Mounted(path) => Finding::ok(subject, format!("mounted on {}", path.display())),
        Tracefs::Mountable(path) => {
            Finding::ok(subject, format!("not mounted on {}; socktrail will use a private mount", path.display()))
        }
        Tracefs::Forbidden(what) => {
            Finding::lost(subject, Status::Privileges, what.clone(), "run as root: sudo socktrail …")
        }
        Tracefs::Missing(why) => Finding::lost(
            subject,
            Status::Tracefs,
            why.clone(),
            "boot a kernel with CONFIG_TRACING=y; in a container, bind-mount the host's /sys",
        ),
    }
}

fn perf(facts: &Facts) -> Finding {
    let subject = "perf";
    match facts.perf_event_paranoid {
        None => Finding::lost(
            subject,
            Status::Kernel,
            "this kernel has no perf events: it was built without CONFIG_PERF_EVENTS",
            "boot a kernel with CONFIG_PERF_EVENTS=y, such as any distribution's",
        ),
        Some(level) => match facts.samples_clock {
            Some(Clock::Local) => Finding::degraded(
                subject,
                format!("perf_event_paranoid {level}, no use_clockid"),
                "exact times: programs cannot read the clock of samples",
                "boot a kernel from 4.1 on",
            ),
            Some(Clock::Monotonic) => Finding::ok(subject, format!("perf_event_paranoid {level}, use_clockid")),
            None => Finding::ok(subject, format!("perf_event_paranoid {level}, use_clockid not tried")),
        },
    }
}

/// The kernel uses `jiffies` if a machine has no other clock, or only clocks that the kernel has found to be unreliable.
fn clock(facts: &Facts) -> Finding {
    let subject = "clock";
    match facts.clock_source.as_deref() {
        Some("jiffies") => Finding::degraded(
            subject,
            "source jiffies: time advances in ticks of 1 to 10 ms",
            "exact times, and the order of events on different CPUs within a tick",
            "boot without clocksource=jiffies; if a virtual machine has no other clock, add one (kvm-clock, hpet, acpi_pm)",
        ),
        Some(source) => Finding::ok(subject, format!("source {source}")),
        None => Finding::ok(subject, "unknown source: this kernel does not show it"),
    }
}

/// How many more files are open: rings, guesses and outputs.
const SPARE_FILES: u64 = 64;
/// The pages of a ring by default: data, and one for control.
const RING_PAGES: u64 = (1 << 7) + 1;

fn limits(facts: &Facts) -> Finding {
    let subject = "limits";
    // One perf event for each probe, on each CPU and for the self-test.
    let files = socktrail::survey::max_probes() as u64 * (facts.cpus + 1) + SPARE_FILES;
    let may_raise = facts.has_any(capability::SYS_RESOURCE);
    if !reaches(facts.files, files, may_raise) {
        return Finding::lost(
            subject,
            Status::Limit,
            format!("limit of {} open files; {files} are needed for {} CPUs", facts.files.hard, facts.cpus),
            format!("raise the limit: ulimit -n {files}, or LimitNOFILE={files} in the service's unit"),
        );
    }
    let ring = RING_PAGES * facts.page_size;
    let given = facts.perf_event_mlock_kb.saturating_mul(1024);
    let locked = ring.saturating_sub(given).saturating_mul(facts.cpus);
    let unlimited = facts.has_any(capability::IPC_LOCK);
    if !unlimited && !reaches(facts.locked_memory, locked, may_raise) {
        return Finding::lost(
            subject,
            Status::Limit,
            format!(
                "limit of {} bytes of locked memory; {locked} are needed for {} CPUs",
                facts.locked_memory.hard, facts.cpus
            ),
            format!(
                "raise the limit: ulimit -l {}, grant CAP_IPC_LOCK, or set a smaller --ring-size-exponent",
                locked.div_ceil(1024)
            ),
        );
    }
    let memory = if unlimited { "unlimited locked memory" } else { "enough locked memory" };
    Finding::ok(subject, format!("{files} open files for {} CPUs, {memory}", facts.cpus))
}

fn reaches(limit: Limit, needed: u64, may_raise: bool) -> bool {
    may_raise || limit.soft.max(limit.hard) >= needed
}

fn ipv6(facts: &Facts) -> Finding {
    let subject = "ipv6";
    match (facts.ipv6, facts.ipv6_off_on_lo) {
        (false, _) => Finding::degraded(
            subject,
            "this kernel has no IPv6, or its module is not loaded",
            "IPv6 flows",
            "modprobe ipv6, or set --enable-ipv6 false if no IPv6 is needed",
        ),
        (true, Some(true)) if !facts.btf => Finding::degraded(
            subject,
            "disabled on the loopback interface",
            "IPv6 flows: guesses about their layout need packets to ::1",
            "sysctl net.ipv6.conf.lo.disable_ipv6=0",
        ),
        (true, Some(true)) => Finding::ok(subject, "available; disabled on the loopback interface"),
        (true, _) => Finding::ok(subject, "available"),
    }
}

fn btf(facts: &Facts) -> Finding {
    let found = if facts.btf {
        "available: the layout is read from it"
    } else {
        "not available: the layout is guessed at every start"
    };
    Finding::ok("btf", found)
}

/// Names of users from `nsswitch.conf` modules (LDAP, SSSD) need a service that asks those modules, or `getent`.
fn users(facts: &Facts) -> Finding {
    let services = match &*facts.user_services {
        [] => "no services of systemd's user database".to_owned(),
        services => services.join(", "),
    };
    let getent = match &facts.getent {
        Some(path) => path.display().to_string(),
        None => "no getent".to_owned(),
    };
    let (subject, found) = ("users", format!("names from files; {services}; {getent}"));
    let all_modules = ["io.systemd.Multiplexer", "io.systemd.NameServiceSwitch"];
    let has_service = facts.user_services.iter().any(|service| all_modules.contains(&&**service));
    if facts.user_modules.is_empty() || has_service || facts.getent.is_some() {
        return Finding::ok(subject, found);
    }
    let modules = facts.user_modules.join(", ");
    let remedy = "start systemd-userdbd.socket, or install /usr/bin/getent, writable only by root";
    Finding::degraded(subject, found, format!("names of users and groups from {modules}"), remedy)
}

#[cfg(test)]
mod tests;
