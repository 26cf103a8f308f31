//! Whose a flow is: never a wrong process's, whatever sockets, programs and users go through.
//!
//! The tests know better than anybody, because each client says its local port and the tests started it.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::actors::{ACT, EXECUTABLE, EXECUTABLE_32, PROGRAM, PROGRAM_32};
use crate::helpers::document::{Wanted, end, expect, is_between, time};
use crate::helpers::process::{Finished, Process, USER};
use crate::helpers::socktrail::Socktrail;

/// The tests of this subject; that of 32-bit programs where there is one.
pub(crate) fn tests() -> Vec<libtest_mimic::Trial> {
    let is_there = Path::new(EXECUTABLE_32).exists();
    every_test().into_iter().filter(|trial| is_there || !trial.name().contains("32_bit")).collect()
}

tests![every_test:
    short_lived_clients_beside_hogs_and_a_busy_server,
    a_fork_connects_its_parents_socket,
    an_exec_between_socket_and_connect,
    a_socket_that_was_passed_on,
    a_connection_that_was_passed_on,
    many_tasks_waiting_in_accept,
    a_connection_that_nobody_accepts,
    a_thread_connects,
    a_user_changed_before_connecting,
    a_user_changed_after_connecting,
    an_effective_user,
    a_user_changed_before_sending,
    a_process_id_used_again,
    a_connection_older_than_the_monitor,
    a_32_bit_program,
    nobody_else_has_anything,
];

/// Who and how many beside those who talk.
const HOGS: usize = 2;
/// How many clients there are at once, and how often.
const CROWD: usize = 6;
const CROWDS: usize = 8;
/// How many wait to accept.
const WAITING: usize = 25;

/// A client that said its address.
struct Client {
    pid: u32,
    args: Vec<String>,
    here: SocketAddr,
    /// Before its start: another may have had its port earlier.
    started: SystemTime,
}

/// The classic way to be wrong: what a short-lived client does is charged to a process that is busy at the time.
fn short_lived_clients_beside_hogs_and_a_busy_server() -> Result<()> {
    let stage = stage()?;
    let hogs = (0..HOGS).map(|_| Process::start(&[PROGRAM, ACT, "hog"])).collect::<Result<Vec<_>>>()?;
    let mut clients = Vec::new();
    for crowd in 0..CROWDS {
        let start = |number| {
            let name = format!("client-{crowd}-{number}");
            Process::start(&[PROGRAM, ACT, "tcp-ask", &stage.there.to_string(), "0", &name])
        };
        let crowd = (0..CROWD).map(start).collect::<Result<Vec<_>>>()?;
        clients.extend(crowd.into_iter().map(Client::of).collect::<Result<Vec<_>>>()?);
    }
    for client in &clients {
        stage.check(client, &[])?;
    }
    let documents = stage.watch.documents()?;
    for hog in &hogs {
        let charged: Vec<_> = documents.iter().filter(|document| document["process"]["pid"] == hog.pid).collect();
        ensure!(charged.is_empty(), "a process that has no socket: {charged:#?}");
    }
    Ok(())
}

/// What is executed, its arguments on a stack of four gigabytes, and its sockets are seen like those of other programs.
fn a_32_bit_program() -> Result<()> {
    let stage = stage()?;
    let args = [PROGRAM_32, ACT, "tcp-ask", &stage.there.to_string(), "0", "of 32 bits"];
    stage.check(&Client::of(Process::start(&args)?)?, &[])
}

/// A socket belongs to whom it was made by.
fn a_fork_connects_its_parents_socket() -> Result<()> {
    one("fork-with-socket", &[], &[])
}

/// The program that connects is another than the one that made the socket; it is the same process.
fn an_exec_between_socket_and_connect() -> Result<()> {
    let stage = stage()?;
    let mut client = Client::of(Process::start(&[PROGRAM, ACT, "exec-with-socket", &stage.there.to_string()])?)?;
    let document = stage.document_of(&client)?;
    let descriptor = document["process"]["args"][4].as_str().context("the descriptor is the last argument")?;
    let args = [PROGRAM, ACT, "connect-inherited", &stage.there.to_string(), descriptor];
    client.args = args.map(str::to_owned).to_vec();
    stage.check(&client, &[])
}

/// It stays its creator's, and who it was passed to is told beside.
fn a_socket_that_was_passed_on() -> Result<()> {
    let stage = stage()?;
    let mut parent = Process::start(&[PROGRAM, ACT, "pass-socket", &stage.there.to_string()])?;
    let here = parent.first_line()?.parse()?;
    let parent = parent.finish()?;
    let child = said_last(&parent)?;
    let client = Client { pid: parent.pid, args: parent.args, here, started: parent.started };
    stage.check(&client, &last_user(child))
}

/// The process id that a child said before it ended.
fn said_last(finished: &Finished) -> Result<u32> {
    let line = finished.stdout.lines().nth(1).with_context(|| format!("two lines: {finished:?}"))?;
    line.parse().with_context(|| format!("a process id: {line}"))
}

fn last_user(pid: u32) -> Wanted {
    vec![
        ("/system/audit/socket/last_user/pid", json!(pid)),
        ("/system/audit/socket/last_user/name", json!(PROGRAM)),
        ("/system/audit/socket/last_user/executable", json!(EXECUTABLE)),
    ]
}

/// A connection belongs to whom it was accepted by, whoever answers.
fn a_connection_that_was_passed_on() -> Result<()> {
    let stage = stage()?;
    let mut server = Process::start(&[PROGRAM, ACT, "pass-accepted", "127.0.0.1:0"])?;
    let there: SocketAddr = server.first_line()?.parse()?;
    let client = Client::of(Process::start(&[PROGRAM, ACT, "tcp-ask", &there.to_string(), "0"])?)?;
    let document = stage.wait_for("ingress", &client, there)?;
    let server = server.finish()?;
    expect(&document, &of_process(server.pid, &server.args))?;
    expect(&document, &last_user(said_last(&server)?))
}

/// Tens of tasks are in `accept(2)` when the connections come: each is the owner of what it got.
fn many_tasks_waiting_in_accept() -> Result<()> {
    let stage = stage()?;
    let args = [PROGRAM, ACT, "accept-many", "127.0.0.1:0", &WAITING.to_string()];
    let mut server = Process::start(&args)?;
    let there: SocketAddr = server.first_line()?.parse()?;
    sleep(Duration::from_millis(300)); // until all have come to wait
    let mut clients = Vec::new();
    for _ in 0..WAITING {
        clients.push(Client::of(Process::start(&[PROGRAM, ACT, "tcp-ask", &there.to_string(), "0"])?)?);
    }
    let server = server.finish()?;
    ensure!(server.status == 0, "{server:?}");
    for client in &clients {
        let of_client = |line: &&str| line.ends_with(&format!(" {}", client.here));
        let line =
            server.stdout.lines().skip(1).find(of_client).with_context(|| format!("nobody got {}", client.here))?;
        let (pid, _) = line.split_once(' ').with_context(|| format!("no process and address: {line}"))?;
        let document = stage.wait_for("ingress", client, there)?;
        expect(&document, &of_process(pid.parse()?, &server.args))?;
    }
    Ok(())
}

/// The kernel completes handshakes although the program never calls `accept(2)`.
fn a_connection_that_nobody_accepts() -> Result<()> {
    let stage = stage()?;
    for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        let mut server = Process::start(&[PROGRAM, ACT, "tcp-listen", address, "1500"])?;
        let listening: SocketAddr = server.first_line()?.parse()?;
        let there = match listening.ip() {
            ip if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listening.port()),
            _ => listening,
        };
        let mut client = TcpStream::connect(there)?;
        client.write_all(b"anybody there?")?;
        let here = client.local_addr()?;
        let server = server.finish()?; // which resets the connection
        let document = stage.watch.wait_for(&format!("the ingress document of {here}"), |document| {
            is_between(document, here, there) && document["network"]["direction"] == "ingress"
        })?;
        expect(&document, &of_process(server.pid, &server.args))?;
    }
    Ok(())
}

/// A process is not a thread, and has not a thread's name.
fn a_thread_connects() -> Result<()> {
    one("connect-in-thread", &[], &[])
}

/// Who connects counts, not who made the socket.
fn a_user_changed_before_connecting() -> Result<()> {
    let user = USER.to_string();
    one("setuid-then-connect", &[&user], &[("/user/id", json!(user)), ("/user/effective/id", json!(user))])
}

/// What the process becomes later does not change who has connected.
fn a_user_changed_after_connecting() -> Result<()> {
    one("connect-then-setuid", &[&USER.to_string()], &[("/user/id", json!("0")), ("/user/effective/id", json!("0"))])
}

fn an_effective_user() -> Result<()> {
    let user = USER.to_string();
    one("seteuid-then-connect", &[&user], &[("/user/id", json!("0")), ("/user/effective/id", json!(user))])
}

/// A datagram socket is connected by nothing but its first datagram.
fn a_user_changed_before_sending() -> Result<()> {
    let stage = stage()?;
    let (mut server, user) = (Process::start(&[PROGRAM, ACT, "udp-answer", "127.0.0.1:0"])?, USER.to_string());
    let there: SocketAddr = server.first_line()?.parse()?;
    let client = Client::of(Process::start(&[PROGRAM, ACT, "setuid-then-send", &there.to_string(), &user])?)?;
    let document = stage.wait_for("egress", &client, there)?;
    expect(&document, &of_process(client.pid, &client.args))?;
    expect(&document, &vec![("/user/id", json!(user)), ("/user/effective/id", json!(user))])
}

/// The next process with the same id is another one.
fn a_process_id_used_again() -> Result<()> {
    let stage = stage()?;
    let ask = |name: &str| -> Result<Client> {
        Client::of(Process::start(&[PROGRAM, ACT, "tcp-ask", &stage.there.to_string(), "0", name])?)
    };
    let first = ask("first")?;
    fs::write("/proc/sys/kernel/ns_last_pid", (first.pid - 1).to_string()).context("turn back the process ids")?;
    let second = ask("second")?;
    ensure!(first.pid == second.pid, "the id was not used again: {} and {}", first.pid, second.pid);
    stage.check(&first, &[])?;
    stage.check(&second, &[])?;
    let ids =
        [&first, &second].map(|client| stage.document_of(client).map(|found| found["process"]["entity_id"].clone()));
    let [first, second] = ids;
    ensure!(first? != second?, "two processes have one entity id");
    Ok(())
}

/// What was open before the monitor came belongs to whom `/proc` says, and is known to be incomplete. Who listens has
/// not begun it; nobody has seen whether the other did.
fn a_connection_older_than_the_monitor() -> Result<()> {
    let mut server = Process::start(&[PROGRAM, ACT, "tcp-serve", "127.0.0.1:8099", "1"])?;
    let there: SocketAddr = server.first_line()?.parse()?;
    let mut client = Process::start(&[PROGRAM, ACT, "tcp-ask", &there.to_string(), "15000"])?;
    let here: SocketAddr = client.first_line()?.parse()?;
    let stage = Stage { watch: watch()?, there, server };
    for (direction, process) in [("unknown", &client), ("ingress", &stage.server)] {
        let what = format!("the {direction} document of {here}");
        let document = stage.watch.wait_for(&what, |document| {
            is_between(document, here, there) && document["network"]["direction"] == direction
        })?;
        expect(&document, &of_process(process.pid, &process.args))?;
        expect(&document, &vec![("/flow/complete", json!(false))])?;
    }
    Ok(())
}

/// All of the others' flows are the server's.
fn nobody_else_has_anything() -> Result<()> {
    let stage = stage()?;
    STAGE.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Stage { watch, there, server } = Arc::into_inner(stage).context("a test still uses the stage")?;
    let watched = watch.stop()?;
    ensure!(watched.status.success(), "socktrail ended with {}:\n{}", watched.status, watched.log);
    let of_server = |document: &&Value| {
        end(document, "destination") == Some(there) && document["network"]["direction"] == "ingress"
    };
    let mut count = 0;
    for document in watched.documents.iter().filter(of_server) {
        expect(document, &of_process(server.pid, &server.args))?;
        count += 1;
    }
    ensure!(count >= CROWD * CROWDS, "only {count} connections of the server");
    Ok(())
}

/// An actor that talks to the server; it is the owner, and the document says of it what else is wanted.
fn one(part: &str, more: &[&str], wanted: &[(&'static str, Value)]) -> Result<()> {
    let stage = stage()?;
    let there = stage.there.to_string();
    let args = [&[PROGRAM, ACT, part, &there], more].concat();
    stage.check(&Client::of(Process::start(&args)?)?, wanted)
}

impl Client {
    /// Lets a client say its address and come to its end.
    fn of(mut process: Process) -> Result<Self> {
        let here = process.first_line()?;
        let finished = process.finish()?;
        ensure!(finished.status == 0, "{finished:?}");
        Ok(Self { pid: finished.pid, args: finished.args, here: here.parse()?, started: finished.started })
    }
}

/// A monitor, and a busy server that is younger.
struct Stage {
    watch: Socktrail,
    server: Process,
    there: SocketAddr,
}

static STAGE: Mutex<Option<Arc<Stage>>> = Mutex::new(None);

/// The stage, set up by the first who asks.
fn stage() -> Result<Arc<Stage>> {
    let mut stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    if stage.is_none() {
        let watch = watch()?;
        let mut server = Process::start(&[PROGRAM, ACT, "tcp-serve-all", "127.0.0.1:0"])?;
        let there = server.first_line()?.parse()?;
        *stage = Some(Arc::new(Stage { watch, server, there }));
    }
    stage.clone().context("the stage is set up")
}

fn watch() -> Result<Socktrail> {
    Socktrail::flows(&["--flow-termination-timeout", "500ms"])
}

impl Stage {
    /// Fails unless both ends' documents name the right process.
    fn check(&self, client: &Client, wanted: &[(&'static str, Value)]) -> Result<()> {
        let document = self.document_of(client)?;
        expect(&document, &of_process(client.pid, &client.args))?;
        expect(&document, &wanted.to_vec())?;
        let passed_on = wanted.iter().any(|(path, _)| path.contains("last_user"));
        ensure!(passed_on || has_no_other_user(&document), "it was not passed on: {document:#}");
        let document = self.wait_for("ingress", client, self.there)?;
        ensure!(has_no_other_user(&document), "nor was this one: {document:#}");
        expect(&document, &of_process(self.server.pid, &self.server.args))
    }

    /// The document of a client of the server.
    fn document_of(&self, client: &Client) -> Result<Value> {
        self.wait_for("egress", client, self.there)
    }

    fn wait_for(&self, direction: &str, client: &Client, server: SocketAddr) -> Result<Value> {
        let Client { here, started, .. } = *client;
        self.watch.wait_for(&format!("the {direction} document of {here}"), |document| {
            is_between(document, here, server)
                && document["network"]["direction"] == direction
                && time(document, "/event/start").is_ok_and(|start| start >= started)
        })
    }
}

fn has_no_other_user(document: &Value) -> bool {
    document.pointer("/system/audit/socket/last_user").is_none()
}

/// What documents say of an actor's process.
fn of_process(pid: u32, args: &[String]) -> Wanted {
    vec![
        ("/system/audit/socket/owner", json!("process")),
        ("/process/pid", json!(pid)),
        ("/process/name", json!(args[0])),
        ("/process/executable", json!(if args[0] == PROGRAM_32 { EXECUTABLE_32 } else { EXECUTABLE })),
        ("/process/args", json!(args)),
    ]
}
