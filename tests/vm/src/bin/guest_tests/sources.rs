//! Wherever the layout comes from, the documents are right.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::actors::{ACT, PROGRAM};
use crate::helpers::document::{end, expect, number};
use crate::helpers::netlink;
use crate::helpers::process::Process;
use crate::helpers::requests::Seen;
use crate::helpers::socktrail::Socktrail;
use crate::masks::doctor;

tests![guesses_alone, type_information_alone, a_saved_layout_alone, the_saved_layout_last, a_kernel_before_4_1];

/// The kernel's type information.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Where a layout is looked for when nothing else tells it.
const SAVED: &str = "/var/lib/socktrail/layout.json";

fn guesses_alone() -> Result<()> {
    right_documents("guess")
}

fn type_information_alone() -> Result<()> {
    right_documents("btf")
}

fn a_saved_layout_alone() -> Result<()> {
    let path = "/tmp/layout.json";
    layout(&["--save", path])?;
    right_documents(&format!("file:{path}"))
}

/// TCP and UDP over both families.
fn right_documents(source: &str) -> Result<()> {
    let seen = Seen::with(&["--source", source])?;
    seen.v4.check(&seen.watched)?;
    seen.v6.check(&seen.watched)?;
    udp(source, "127.0.0.1:0")?;
    udp(source, "[::1]:0")
}

/// A question and its answer.
fn udp(source: &str, address: &str) -> Result<()> {
    let watch = Socktrail::flows(&["--source", source])?;
    let mut answer = Process::start(&[PROGRAM, ACT, "udp-answer", address])?;
    let there: SocketAddr = answer.first_line()?.parse()?;
    let mut ask = Process::start(&[PROGRAM, ACT, "udp-ask", &there.to_string()])?;
    let (client, server) = (ask.pid, answer.pid);
    let here: SocketAddr = ask.first_line()?.parse()?;
    ensure!(ask.finish()?.status == 0 && answer.finish()?.status == 0, "the exchange failed");
    let watched = watch.stop()?;
    for (pid, direction) in [(client, "egress"), (server, "ingress")] {
        let document = watched.only_of_pid(pid)?;
        ensure!((end(document, "source"), end(document, "destination")) == (Some(here), Some(there)), "{document:#}");
        expect(document, &vec![("/network/transport", json!("udp")), ("/network/direction", json!(direction))])?;
        ensure!(number(document, "/source/packets")? > 0, "no packets: {document:#}");
        ensure!(number(document, "/destination/packets")? > 0, "no packets back: {document:#}");
    }
    Ok(())
}

/// A host that tells nothing: no type information, and no loopback to guess through. What was saved earlier does, unless
/// it is of another kernel or not to be trusted.
fn the_saved_layout_last() -> Result<()> {
    let whole = layout(&["--save"])?;
    ensure!(Path::new(SAVED).exists(), "nothing was saved at {SAVED}");
    let _dumb = Dumb::new()?;
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
    ensure!(refused.status != 0 && refused.stderr.contains("is of another kernel"), "{refused:?}");
    fs::remove_file(SAVED)?;
    let silent = Process::start(&["socktrail", "layout"])?.finish()?;
    ensure!(silent.status != 0 && silent.stderr.contains("loopback must be up"), "{silent:?}");
    Ok(())
}

/// A host without type information and loopback, until it is dropped.
struct Dumb;

impl Dumb {
    fn new() -> Result<Self> {
        mount(Some("/dev/null"), BTF, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("hide the BTF")?;
        netlink::set_up("lo", false)?;
        Ok(Self)
    }
}

impl Drop for Dumb {
    fn drop(&mut self) {
        netlink::set_up("lo", true).ok();
        umount2(BTF, MntFlags::empty()).ok();
    }
}

/// Functions get the packet alone, and sockets do not count segments. This kernel's layout without what older ones do not
/// have makes the monitor do what it does there; the packet belongs to its sender on this kernel just as it did.
fn a_kernel_before_4_1() -> Result<()> {
    let path = "/tmp/old-layout.json";
    let mut old = layout(&[])?;
    let segments = ["tcp_sock.segs_in", "tcp_sock.segs_out"];
    let functions = ["__ip_local_out", "ip_local_out", "__ip6_local_out", "ip6_local_out"];
    let given = functions.iter().flat_map(|function| ["net", "sk"].map(|name| format!("{function}({name})")));
    for (kind, key) in
        segments.map(|key| ("fields", key.to_owned())).into_iter().chain(given.map(|key| ("arguments", key)))
    {
        old[kind]
            .as_object_mut()
            .with_context(|| format!("no {kind}"))?
            .remove(&key)
            .with_context(|| format!("no {key}"))?;
    }
    fs::write(path, old.to_string())?;
    let source = format!("file:{path}");
    let (status, capabilities) = doctor(&["--source", &source])?;
    ensure!(status == 1, "doctor ended with {status}");
    for (feature, (state, function)) in &capabilities {
        let uncounted = ["ipv4_out", "tcp_ipv6_out", "tcp_state"].contains(&feature.as_str());
        let wanted = if uncounted { "degraded" } else { "ok" };
        ensure!(state == wanted, "{feature} is {state} through {function:?}: {capabilities:#?}");
    }
    right_documents(&source)
}

/// What `socktrail layout --json` says.
fn layout(more: &[&str]) -> Result<Value> {
    let layout = Process::start(&[&["socktrail", "layout", "--json"], more].concat())?.finish()?;
    ensure!(layout.status == 0, "{layout:?}");
    serde_json::from_str(&layout.stdout).with_context(|| format!("no JSON: {layout:?}"))
}
