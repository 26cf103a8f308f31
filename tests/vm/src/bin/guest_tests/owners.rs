//! The owner of a flow is never a wrong process, even if sockets are passed, programs executed and users changed.
//!
//! The tests know the right owner, because they start each client, and it prints its local address.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::helpers::document::{ExpectedFields, endpoint, expect, is_between, time};
use crate::helpers::process::{Finished, Process, USER_ID};
use crate::helpers::socktrail::Socktrail;
use crate::lifetime::expect_success;
use crate::workloads::{EXECUTABLE, EXECUTABLE_32, PROGRAM, PROGRAM_32, RUN};

/// The tests of this subject.
pub(crate) fn tests() -> Vec<libtest_mimic::Trial> {
    crate::harness::runnable(every_test())
}

tests![every_test:
    short_lived_clients_beside_hogs_and_a_busy_server,
    a_fork_connects_its_parents_socket,
    an_exec_between_socket_and_connect,
    a_socket_that_was_passed_on,
    a_connection_that_was_passed_on,
    many_tasks_waiting_in_accept,
    a_connection_that_is_never_accepted,
    a_thread_connects,
    a_user_changed_before_connecting,
    a_user_changed_after_connecting,
    an_effective_user,
    a_user_changed_before_sending,
    a_process_id_used_again,
    a_connection_older_than_the_monitor,
    a_32_bit_program,
    all_connections_to_the_server_belong_to_it,
];

/// The number of processes that only use CPU time.
const HOGS: usize = 2;
/// The number of concurrent clients.
const CROWD: usize = 6;
/// How often that many clients start.
const CROWDS: usize = 8;
/// The number of tasks in `accept(2)`.
const WAITING: usize = 25;

/// A client that has printed its address.
struct Client {
    pid: u32,
    args: Vec<String>,
    here: SocketAddr,
    /// A time before its start. An earlier client may have had the same port.
    started: SystemTime,
}

/// A flow of a short-lived client must not be attributed to a process that runs at the same time.
fn short_lived_clients_beside_hogs_and_a_busy_server() -> Result<()> {
    let fixture = fixture()?;
    let hogs = (0..HOGS).map(|_| Process::start(&[PROGRAM, RUN, "hog"])).collect::<Result<Vec<_>>>()?;
    let mut clients = Vec::new();
    for crowd in 0..CROWDS {
        let start = |number| {
            let name = format!("client-{crowd}-{number}");
            Process::start(&[PROGRAM, RUN, "tcp-ask", &fixture.there.to_string(), "0", &name])
        };
        let crowd = (0..CROWD).map(start).collect::<Result<Vec<_>>>()?;
        clients.extend(crowd.into_iter().map(Client::of).collect::<Result<Vec<_>>>()?);
    }
    for client in &clients {
        fixture.check(client, &[])?;
    }
    let documents = fixture.monitor.documents()?;
    for hog in &hogs {
        let charged: Vec<_> = documents.iter().filter(|document| document["process"]["pid"] == hog.pid).collect();
        ensure!(charged.is_empty(), "flows of a process without sockets: {charged:#?}");
    }
    Ok(())
}

/// Exec, arguments and sockets are reported like those of a 64-bit program.
fn a_32_bit_program() -> Result<()> {
    let fixture = fixture()?;
    let args = [PROGRAM_32, RUN, "tcp-ask", &fixture.there.to_string(), "0", "of 32 bits"];
    fixture.check(&Client::of(Process::start(&args)?)?, &[])
}

/// The owner is the process that made the socket.
fn a_fork_connects_its_parents_socket() -> Result<()> {
    check_workload("fork-with-socket", &[], &[])
}

/// The process executes another program between `socket(2)` and `connect(2)`.
fn an_exec_between_socket_and_connect() -> Result<()> {
    let fixture = fixture()?;
    let mut client = Client::of(Process::start(&[PROGRAM, RUN, "exec-with-socket", &fixture.there.to_string()])?)?;
    let document = fixture.document_of(&client)?;
    let descriptor = document["process"]["args"][4].as_str().context("no descriptor in the arguments")?;
    let args = [PROGRAM, RUN, "connect-inherited", &fixture.there.to_string(), descriptor];
    client.args = args.map(str::to_owned).to_vec();
    fixture.check(&client, &[])
}

/// The owner stays the process that made it. The receiver is the `last_user`.
fn a_socket_that_was_passed_on() -> Result<()> {
    let fixture = fixture()?;
    let mut parent = Process::start(&[PROGRAM, RUN, "pass-socket", &fixture.there.to_string()])?;
    let here = parent.first_line()?.parse()?;
    let parent = parent.finish()?;
    let child = child_pid(&parent)?;
    let client = Client { pid: parent.pid, args: parent.args, here, started: parent.before_start };
    fixture.check(&client, &last_user(child))
}

/// The pid that a child has printed in the second line.
fn child_pid(finished: &Finished) -> Result<u32> {
    let line = finished.stdout.lines().nth(1).with_context(|| format!("no second line: {finished:?}"))?;
    line.parse().with_context(|| format!("not a pid: {line}"))
}

fn last_user(pid: u32) -> ExpectedFields {
    vec![
        ("/system/audit/socket/last_user/pid", json!(pid)),
        ("/system/audit/socket/last_user/name", json!(PROGRAM)),
        ("/system/audit/socket/last_user/executable", json!(EXECUTABLE)),
    ]
}

/// The owner is the process that accepted the connection, although another one answers.
fn a_connection_that_was_passed_on() -> Result<()> {
    let fixture = fixture()?;
    let mut server = Process::start(&[PROGRAM, RUN, "pass-accepted", "127.0.0.1:0"])?;
    let there: SocketAddr = server.first_line()?.parse()?;
    let client = Client::of(Process::start(&[PROGRAM, RUN, "tcp-ask", &there.to_string(), "0"])?)?;
    let document = fixture.wait_for("ingress", &client, there)?;
    let server = server.finish()?;
    expect(&document, &of_process(server.pid, &server.args))?;
    expect(&document, &last_user(child_pid(&server)?))
}

/// Tens of tasks are in `accept(2)` when connections arrive. Each owns the connections that it accepts.
fn many_tasks_waiting_in_accept() -> Result<()> {
    let fixture = fixture()?;
    let args = [PROGRAM, RUN, "accept-many", "127.0.0.1:0", &WAITING.to_string()];
    let mut server = Process::start(&args)?;
    let there: SocketAddr = server.first_line()?.parse()?;
    sleep(Duration::from_millis(300)); // until all are in accept(2)
    let mut clients = Vec::new();
    for _ in 0..WAITING {
        clients.push(Client::of(Process::start(&[PROGRAM, RUN, "tcp-ask", &there.to_string(), "0"])?)?);
    }
    let server = server.finish()?;
    ensure!(server.status == 0, "{server:?}");
    for client in &clients {
        let of_client = |line: &&str| line.ends_with(&format!(" {}", client.here));
        let line = server
            .stdout
            .lines()
            .skip(1)
            .find(of_client)
            .with_context(|| format!("no task accepted {}", client.here))?;
        let (pid, _) = line.split_once(' ').with_context(|| format!("no pid and address: {line}"))?;
        let document = fixture.wait_for("ingress", client, there)?;
        expect(&document, &of_process(pid.parse()?, &server.args))?;
    }
    Ok(())
}

/// The kernel completes handshakes although the program never calls `accept(2)`.
fn a_connection_that_is_never_accepted() -> Result<()> {
    let fixture = fixture()?;
    for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        let mut server = Process::start(&[PROGRAM, RUN, "tcp-listen", address, "1500"])?;
        let listening: SocketAddr = server.first_line()?.parse()?;
        let there = match listening.ip() {
            ip if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listening.port()),
            _ => listening,
        };
        let mut client = TcpStream::connect(there)?;
        client.write_all(b"anybody there?")?;
        let here = client.local_addr()?;
        let server = server.finish()?; // which resets the connection
        let document = fixture.monitor.wait_for(&format!("the ingress document of {here}"), |document| {
            is_between(document, here, there) && document["network"]["direction"] == "ingress"
        })?;
        expect(&document, &of_process(server.pid, &server.args))?;
    }
    Ok(())
}

/// `process.name` is the process's name, not the thread's.
fn a_thread_connects() -> Result<()> {
    check_workload("connect-in-thread", &[], &[])
}

/// The user is that of the connect, not that of the socket's creation.
fn a_user_changed_before_connecting() -> Result<()> {
    let user = USER_ID.to_string();
    check_workload("setuid-then-connect", &[&user], &[("/user/id", json!(user)), ("/user/effective/id", json!(user))])
}

/// A later change does not change the flow's user.
fn a_user_changed_after_connecting() -> Result<()> {
    check_workload(
        "connect-then-setuid",
        &[&USER_ID.to_string()],
        &[("/user/id", json!("0")), ("/user/effective/id", json!("0"))],
    )
}

fn an_effective_user() -> Result<()> {
    let user = USER_ID.to_string();
    check_workload("seteuid-then-connect", &[&user], &[("/user/id", json!("0")), ("/user/effective/id", json!(user))])
}

/// For an unconnected UDP socket, the user is that of the first datagram.
fn a_user_changed_before_sending() -> Result<()> {
    let fixture = fixture()?;
    let (mut server, user) = (Process::start(&[PROGRAM, RUN, "udp-answer", "127.0.0.1:0"])?, USER_ID.to_string());
    let there: SocketAddr = server.first_line()?.parse()?;
    let client = Client::of(Process::start(&[PROGRAM, RUN, "setuid-then-send", &there.to_string(), &user])?)?;
    let document = fixture.wait_for("egress", &client, there)?;
    expect(&document, &of_process(client.pid, &client.args))?;
    expect(&document, &vec![("/user/id", json!(user)), ("/user/effective/id", json!(user))])
}

/// Two processes with the same pid have different entity ids.
fn a_process_id_used_again() -> Result<()> {
    let fixture = fixture()?;
    let ask = |name: &str| -> Result<Client> {
        Client::of(Process::start(&[PROGRAM, RUN, "tcp-ask", &fixture.there.to_string(), "0", name])?)
    };
    let first = ask("first")?;
    fs::write("/proc/sys/kernel/ns_last_pid", (first.pid - 1).to_string()).context("set the next pid")?;
    let second = ask("second")?;
    ensure!(first.pid == second.pid, "the pid was not used again: {} and {}", first.pid, second.pid);
    fixture.check(&first, &[])?;
    fixture.check(&second, &[])?;
    let ids =
        [&first, &second].map(|client| fixture.document_of(client).map(|found| found["process"]["entity_id"].clone()));
    let [first, second] = ids;
    ensure!(first? != second?, "two processes have one entity id");
    Ok(())
}

/// The owner of a preexisting connection is the process in `/proc`, and the flow is not complete. The direction is
/// known at the listener's end only.
fn a_connection_older_than_the_monitor() -> Result<()> {
    let mut server = Process::start(&[PROGRAM, RUN, "tcp-serve", "127.0.0.1:8099", "1"])?;
    let there: SocketAddr = server.first_line()?.parse()?;
    let mut client = Process::start(&[PROGRAM, RUN, "tcp-ask", &there.to_string(), "15000"])?;
    let here: SocketAddr = client.first_line()?.parse()?;
    let fixture = Fixture { monitor: start_monitor()?, there, server };
    for (direction, process) in [("unknown", &client), ("ingress", &fixture.server)] {
        let what = format!("the {direction} document of {here}");
        let document = fixture.monitor.wait_for(&what, |document| {
            is_between(document, here, there) && document["network"]["direction"] == direction
        })?;
        expect(&document, &of_process(process.pid, &process.args))?;
        expect(&document, &vec![("/flow/complete", json!(false))])?;
    }
    Ok(())
}

/// The last test, because it stops the monitor: every connection that earlier tests made to the server has the server as
/// owner at its accepting end.
fn all_connections_to_the_server_belong_to_it() -> Result<()> {
    let fixture = fixture()?;
    FIXTURE.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Fixture { monitor, there, server } = Arc::into_inner(fixture).context("a test still uses the fixture")?;
    let output = monitor.stop()?;
    expect_success(&output)?;
    let of_server = |document: &&Value| {
        endpoint(document, "destination") == Some(there) && document["network"]["direction"] == "ingress"
    };
    let mut count = 0;
    for document in output.documents.iter().filter(of_server) {
        expect(document, &of_process(server.pid, &server.args))?;
        count += 1;
    }
    ensure!(count >= CROWD * CROWDS, "only {count} connections to the server");
    Ok(())
}

/// Runs a workload that connects to the server. Fails unless it is the owner, and its document has these fields.
fn check_workload(workload: &str, more: &[&str], wanted: &[(&'static str, Value)]) -> Result<()> {
    let fixture = fixture()?;
    let there = fixture.there.to_string();
    let args = [&[PROGRAM, RUN, workload, &there], more].concat();
    fixture.check(&Client::of(Process::start(&args)?)?, wanted)
}

impl Client {
    /// Reads the client's address, and waits for its end.
    fn of(mut process: Process) -> Result<Self> {
        let here = process.first_line()?;
        let finished = process.finish()?;
        ensure!(finished.status == 0, "{finished:?}");
        Ok(Self { pid: finished.pid, args: finished.args, here: here.parse()?, started: finished.before_start })
    }
}

/// A monitor, and a server that started after it.
struct Fixture {
    monitor: Socktrail,
    server: Process,
    there: SocketAddr,
}

static FIXTURE: Mutex<Option<Arc<Fixture>>> = Mutex::new(None);

/// The fixture; the first call sets it up.
fn fixture() -> Result<Arc<Fixture>> {
    let mut fixture = FIXTURE.lock().unwrap_or_else(PoisonError::into_inner);
    if fixture.is_none() {
        let monitor = start_monitor()?;
        let mut server = Process::start(&[PROGRAM, RUN, "tcp-serve-all", "127.0.0.1:0"])?;
        let there = server.first_line()?.parse()?;
        *fixture = Some(Arc::new(Fixture { monitor, server, there }));
    }
    fixture.clone().context("the fixture is not set up")
}

fn start_monitor() -> Result<Socktrail> {
    Socktrail::flows(&["--flow-termination-timeout", "500ms"])
}

impl Fixture {
    /// Fails unless the documents of both ends have the right owner.
    fn check(&self, client: &Client, wanted: &[(&'static str, Value)]) -> Result<()> {
        let document = self.document_of(client)?;
        expect(&document, &of_process(client.pid, &client.args))?;
        expect(&document, &wanted.to_vec())?;
        let passed_on = wanted.iter().any(|(path, _)| path.contains("last_user"));
        ensure!(passed_on || has_no_other_user(&document), "an unexpected last_user: {document:#}");
        let document = self.wait_for("ingress", client, self.there)?;
        ensure!(has_no_other_user(&document), "an unexpected last_user: {document:#}");
        expect(&document, &of_process(self.server.pid, &self.server.args))
    }

    /// The client's document.
    fn document_of(&self, client: &Client) -> Result<Value> {
        self.wait_for("egress", client, self.there)
    }

    fn wait_for(&self, direction: &str, client: &Client, server: SocketAddr) -> Result<Value> {
        let Client { here, started, .. } = *client;
        self.monitor.wait_for(&format!("the {direction} document of {here}"), |document| {
            is_between(document, here, server)
                && document["network"]["direction"] == direction
                && time(document, "/event/start").is_ok_and(|start| start >= started)
        })
    }
}

fn has_no_other_user(document: &Value) -> bool {
    document.pointer("/system/audit/socket/last_user").is_none()
}

/// The fields of a workload's process in a document.
fn of_process(pid: u32, args: &[String]) -> ExpectedFields {
    vec![
        ("/system/audit/socket/owner", json!("process")),
        ("/process/pid", json!(pid)),
        ("/process/name", json!(args[0])),
        ("/process/executable", json!(if args[0] == PROGRAM_32 { EXECUTABLE_32 } else { EXECUTABLE })),
        ("/process/args", json!(args)),
    ]
}
