//! Documents are right with each source of the kernel's layout.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::helpers::document::{endpoint, expect, number};
use crate::helpers::layout::{BTF, has_type_information};
use crate::helpers::netlink::{LinkState, set_link_state};
use crate::helpers::process::Process;
use crate::helpers::requests::Requests;
use crate::helpers::socktrail::Socktrail;
use crate::masks::{FeatureStatus, doctor};
use crate::workloads::{PROGRAM, RUN};

tests![
    guesses_alone,
    type_information_alone,
    a_saved_layout_alone,
    the_saved_layout_is_tried_last,
    a_kernel_before_4_1
];

/// The default path of a saved layout.
const SAVED: &str = "/var/lib/socktrail/layout.json";

fn guesses_alone() -> Result<()> {
    right_documents("guess")
}

fn type_information_alone() -> Result<()> {
    if !has_type_information() {
        return Ok(());
    }
    right_documents("btf")
}

fn a_saved_layout_alone() -> Result<()> {
    let path = "/tmp/layout.json";
    layout(&["--save", path])?;
    right_documents(&format!("file:{path}"))
}

/// TCP and UDP over both families.
fn right_documents(source: &str) -> Result<()> {
    let requests = Requests::with(&["--source", source])?;
    requests.v4.check(&requests.output)?;
    requests.v6.check(&requests.output)?;
    udp(source, "127.0.0.1:0")?;
    udp(source, "[::1]:0")
}

/// A datagram and its answer.
fn udp(source: &str, address: &str) -> Result<()> {
    let monitor = Socktrail::flows(&["--source", source])?;
    let mut answer = Process::start(&[PROGRAM, RUN, "udp-answer", address])?;
    let there: SocketAddr = answer.first_line()?.parse()?;
    let mut ask = Process::start(&[PROGRAM, RUN, "udp-ask", &there.to_string()])?;
    let (client, server) = (ask.pid, answer.pid);
    let here: SocketAddr = ask.first_line()?.parse()?;
    ensure!(ask.finish()?.status == 0 && answer.finish()?.status == 0, "the exchange failed");
    let output = monitor.stop()?;
    for (pid, direction) in [(client, "egress"), (server, "ingress")] {
        let document = output.only_of_pid(pid)?;
        ensure!(
            (endpoint(document, "source"), endpoint(document, "destination")) == (Some(here), Some(there)),
            "{document:#}"
        );
        expect(document, &vec![("/network/transport", json!("udp")), ("/network/direction", json!(direction))])?;
        ensure!(number(document, "/source/packets")? > 0, "no packets: {document:#}");
        ensure!(number(document, "/destination/packets")? > 0, "no packets back: {document:#}");
    }
    Ok(())
}

/// Without type information, and without loopback for guesses, the saved layout is used, unless it is of another
/// kernel.
fn the_saved_layout_is_tried_last() -> Result<()> {
    let whole = layout(&["--save"])?;
    ensure!(Path::new(SAVED).exists(), "nothing was saved at {SAVED}");
    let _sources = NoOtherSources::new()?;
    let saved = layout(&[])?;
    for kind in ["fields", "arguments"] {
        let all = whole[kind].as_object().with_context(|| format!("no {kind}"))?;
        for key in all.keys() {
            let source = saved[kind][key]["source"].as_str();
            ensure!(matches!(source, Some("file" | "abi")), "{key} comes from {source:?}");
        }
    }

    let text = fs::read_to_string(SAVED)?;
    fs::write(SAVED, text.replace("\"build_id\": \"", "\"build_id\": \"00"))?;
    let refused = Process::start(&["socktrail", "layout"])?.finish()?;
    ensure!(refused.status != 0 && refused.stderr.contains("was saved on another kernel"), "{refused:?}");
    fs::remove_file(SAVED)?;
    let refused = Process::start(&["socktrail", "layout"])?.finish()?;
    ensure!(refused.status != 0 && refused.stderr.contains("loopback must be up"), "{refused:?}");
    Ok(())
}

/// Hides type information and takes loopback down; dropping it restores both.
struct NoOtherSources;

impl NoOtherSources {
    fn new() -> Result<Self> {
        if has_type_information() {
            mount(Some("/dev/null"), BTF, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("hide the BTF")?;
        }
        set_link_state("lo", LinkState::Down)?;
        Ok(Self)
    }
}

impl Drop for NoOtherSources {
    fn drop(&mut self) {
        set_link_state("lo", LinkState::Up).ok();
        umount2(BTF, MntFlags::empty()).ok();
    }
}

/// Before Linux 4.1, output functions have only the packet as argument, and sockets do not count segments. A layout without
/// these entries makes the monitor behave as on such a kernel: it takes the sender from the packet (`sk_buff.sk`), where it is
/// right on newer kernels, too.
fn a_kernel_before_4_1() -> Result<()> {
    let path = "/tmp/old-layout.json";
    let mut old = layout(&[])?;
    let mut remove = |kind: &str, key: &str| {
        let of_kind = old[kind].as_object_mut().with_context(|| format!("no {kind}"))?;
        anyhow::Ok(of_kind.remove(key))
    };
    for key in ["tcp_sock.segs_in", "tcp_sock.segs_out"] {
        remove("fields", key)?.with_context(|| format!("no {key}"))?;
    }
    for function in ["__ip_local_out", "ip_local_out", "__ip6_local_out", "ip6_local_out"] {
        for name in ["net", "sk"] {
            // A guess does not find those of functions that the compiler has inlined.
            remove("arguments", &format!("{function}({name})"))?;
        }
    }
    fs::write(path, old.to_string())?;
    let source = format!("file:{path}");
    let (status, capabilities) = doctor(&["--source", &source])?;
    ensure!(status == 1, "doctor ended with {status}");
    for (feature, FeatureStatus { state, function }) in &capabilities {
        let uncounted = ["ipv4_out", "tcp_ipv6_out", "tcp_state"].contains(&feature.as_str());
        let wanted = if uncounted { "degraded" } else { "ok" };
        ensure!(state == wanted, "{feature} is {state} through {function:?}: {capabilities:#?}");
    }
    right_documents(&source)
}

/// The output of `socktrail layout --json`.
fn layout(more: &[&str]) -> Result<Value> {
    let layout = Process::start(&[&["socktrail", "layout", "--json"], more].concat())?.finish()?;
    ensure!(layout.status == 0, "{layout:?}");
    serde_json::from_str(&layout.stdout).with_context(|| format!("not JSON: {layout:?}"))
}
