use std::path::PathBuf;

use socktrail::switches::Switches;

use super::*;

/// A stock Debian 12 with two CPUs, seen by root.
fn debian() -> Facts {
    let unlimited = Limit { soft: u64::MAX, hard: u64::MAX };
    Facts {
        release: "6.1.0-28-amd64".into(),
        architecture: "x86_64".into(),
        tracefs: Tracefs::Mounted(PathBuf::from("/sys/kernel/tracing")),
        kprobes: Some(true),
        switches: Switches { kprobes: Some(true), ftrace: Some(true) },
        perf_event_paranoid: Some(3),
        samples_clock: Some(Clock::Monotonic),
        clock_source: Some("tsc".into()),
        euid: 0,
        capabilities: u64::MAX,
        confinement: "all".into(),
        agents: vec!["process 1 keeps none".into()],
        user_services: vec!["io.systemd.DynamicUser".into()],
        getent: Some("/usr/bin/getent".into()),
        user_modules: Vec::new(),
        lockdown: Some("none".into()),
        ipv6: true,
        ipv6_off_on_lo: Some(false),
        btf: true,
        cpus: 2,
        files: Limit { soft: 1024, hard: 1_048_576 },
        locked_memory: unlimited,
        perf_event_mlock_kb: 516,
        page_size: 4096,
    }
}

/// The problems of a host: subject, state, status.
fn problems(facts: &Facts) -> Vec<(&'static str, State, Status)> {
    let findings = findings(facts);
    for finding in &findings {
        assert_eq!(finding.state == State::Ok, finding.missing.is_none(), "{finding:?}");
        assert_eq!(finding.state == State::Ok, finding.remedy.is_none(), "{finding:?}");
        assert_eq!(finding.state == State::Lost, finding.status != Status::Success, "{finding:?}");
    }
    let problems = findings.into_iter().filter(|finding| finding.state != State::Ok);
    problems.map(|finding| (finding.subject, finding.state, finding.status)).collect()
}

#[test]
fn a_stock_host_lacks_nothing() {
    assert_eq!(problems(&debian()), []);
    let tracefs = Tracefs::Mountable("/sys/kernel/tracing".into());
    assert_eq!(problems(&Facts { tracefs, btf: false, switches: Switches::default(), lockdown: None, ..debian() }), []);
}

#[test]
fn missing_kprobes_come_before_missing_privileges() {
    let facts = Facts {
        kprobes: Some(false),
        btf: false,
        euid: 1000,
        capabilities: 0,
        tracefs: Tracefs::Forbidden("no permission".into()),
        ..debian()
    };
    assert_eq!(
        blocking(&findings(&facts)).map(|finding| finding.status).collect::<Vec<_>>(),
        [Status::Kernel, Status::Privileges, Status::Privileges]
    );
}

#[test]
fn without_kprobes_a_control_group_shows_flows() {
    assert_eq!(
        problems(&Facts { kprobes: Some(false), ..debian() }),
        [("kprobes", State::Degraded, Status::Success)],
        "programs need type information"
    );
}

#[test]
fn switches_that_disable_probes() {
    let lost = [("kprobes", State::Lost, Status::Kernel)];
    assert_eq!(problems(&Facts { switches: Switches { kprobes: Some(false), ftrace: Some(true) }, ..debian() }), lost);
    let off = Facts { switches: Switches { kprobes: Some(true), ftrace: Some(false) }, ..debian() };
    assert_eq!(problems(&off), lost);
    let arm = Facts { architecture: "aarch64".into(), ..off };
    assert_eq!(problems(&arm), [("kprobes", State::Degraded, Status::Success)]);
    assert_eq!(problems(&Facts { switches: Switches { kprobes: Some(true), ftrace: None }, ..debian() }), []);
}

#[test]
fn a_clock_that_advances_by_ticks() {
    let with = |source: Option<&str>| problems(&Facts { clock_source: source.map(str::to_owned), ..debian() });
    assert_eq!(with(Some("jiffies")), [("clock", State::Degraded, Status::Success)]);
    assert_eq!(with(Some("kvm-clock")), []);
    assert_eq!(with(None), []);
}

/// The release does not matter: distributions have backported `use_clockid`.
#[test]
fn a_clock_that_programs_cannot_read() {
    for release in ["3.16.0-6-amd64", "6.1.0-28-amd64"] {
        let with = |samples_clock| problems(&Facts { release: release.into(), samples_clock, ..debian() });
        assert_eq!(with(Some(Clock::Local)), [("perf", State::Degraded, Status::Success)]);
        assert_eq!(with(Some(Clock::Monotonic)), []);
        assert_eq!(with(None), []);
    }
}

#[test]
fn only_confidentiality_is_too_much_lockdown() {
    let locked = |mode: &str| problems(&Facts { lockdown: Some(mode.into()), ..debian() });
    assert_eq!(locked("integrity"), []);
    assert_eq!(locked("confidentiality"), [("lockdown", State::Lost, Status::Kernel)]);
}

#[test]
fn a_user_without_privileges() {
    let facts = Facts {
        kprobes: None,
        euid: 1000,
        capabilities: 0,
        tracefs: Tracefs::Forbidden("/sys/kernel/tracing: Permission denied".into()),
        locked_memory: Limit { soft: 8 << 20, hard: 8 << 20 },
        ..debian()
    };
    assert_eq!(
        problems(&facts),
        [
            ("kprobes", State::Degraded, Status::Success),
            ("privileges", State::Lost, Status::Privileges),
            ("tracefs", State::Lost, Status::Privileges),
        ]
    );
}

#[test]
fn root_in_a_container_with_few_capabilities() {
    let few = capability::DAC_OVERRIDE;
    assert_eq!(problems(&Facts { capabilities: few, ..debian() }), [("privileges", State::Lost, Status::Privileges)]);
    let enough = few | capability::PERFMON;
    assert_eq!(
        problems(&Facts { capabilities: enough, ..debian() }),
        [("privileges", State::Degraded, Status::Success)]
    );
}

#[test]
fn many_cpus_need_many_files_and_much_locked_memory() {
    let small = Limit { soft: 1024, hard: 4096 };
    let plain = Facts { capabilities: capability::SYS_ADMIN | capability::SYS_PTRACE, ..debian() };
    assert_eq!(problems(&Facts { files: small, cpus: 32, ..plain.clone() }), []);
    assert_eq!(problems(&Facts { files: small, cpus: 128, ..plain.clone() }), [("limits", State::Lost, Status::Limit)]);
    let tiny = Limit { soft: 65536, hard: 65536 };
    assert_eq!(
        problems(&Facts { locked_memory: tiny, ..plain.clone() }),
        [],
        "perf_event_mlock_kb allows 516 KiB on each CPU"
    );
    let facts = Facts { locked_memory: tiny, perf_event_mlock_kb: 16, ..plain };
    assert_eq!(problems(&facts), [("limits", State::Lost, Status::Limit)]);
    assert_eq!(problems(&Facts { capabilities: u64::MAX, ..facts }), []);
}

#[test]
fn no_tracefs_and_no_perf() {
    let tracefs = Tracefs::Missing("this kernel has no tracefs".into());
    assert_eq!(
        problems(&Facts { tracefs, perf_event_paranoid: None, ..debian() }),
        [("tracefs", State::Lost, Status::Tracefs), ("perf", State::Lost, Status::Kernel)]
    );
}

#[test]
fn names_from_nsswitch_modules_need_a_service_or_getent() {
    let sssd = Facts { user_modules: vec!["sss".into()], ..debian() };
    assert_eq!(problems(&sssd), [], "getent knows them");
    let sssd = Facts { getent: None, ..sssd };
    assert_eq!(problems(&sssd), [("users", State::Degraded, Status::Success)]);
    let service = "io.systemd.Multiplexer".to_owned();
    assert_eq!(problems(&Facts { user_services: vec![service], ..sssd }), []);
    assert_eq!(problems(&Facts { user_services: Vec::new(), getent: None, ..debian() }), []);
}

#[test]
fn without_btf_ipv6_must_be_enabled_on_loopback() {
    let off = Facts { ipv6_off_on_lo: Some(true), ..debian() };
    assert_eq!(problems(&off), []);
    assert_eq!(problems(&Facts { btf: false, ..off }), [("ipv6", State::Degraded, Status::Success)]);
    let none = Facts { ipv6: false, ipv6_off_on_lo: None, ..debian() };
    assert_eq!(problems(&none), [("ipv6", State::Degraded, Status::Success)]);
}

#[test]
fn old_releases_and_unknown_architectures_are_problems() {
    let of = |release: &str, architecture: &str| {
        let facts = Facts { release: release.into(), architecture: architecture.into(), ..debian() };
        problems(&facts).first().map(|&(_, state, _)| state)
    };
    assert_eq!(of("2.6.32-696.30.1.el6", "x86_64"), Some(State::Degraded));
    assert_eq!(of("3.10.0-957.1.3.el7", "x86_64"), Some(State::Degraded));
    assert_eq!(of("3.16.0-6-amd64", "x86_64"), None);
    assert_eq!(of("4.19.0", "aarch64"), None);
    assert_eq!(of("10.0", "aarch64"), None);
    assert_eq!(of("6.1", "riscv64"), Some(State::Lost));
}
