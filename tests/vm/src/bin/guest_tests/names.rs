//! A flow has the name that its process looked up, and no other.
//!
//! The server of names is Debian's dnsmasq, the clients are curl and, for answers that no real server sends, the test
//! itself. The names are made up; their addresses are loopback's, on which the guest's web server listens.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::helpers::document::{Wanted, expect};
use crate::helpers::patience::until;
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::web::WebServer;

tests![
    of_a_short_lived_client_over_ipv4,
    of_a_short_lived_client_over_ipv6,
    the_name_asked_for_at_the_head_of_a_chain,
    of_a_truncated_answer_that_came_by_tcp,
    two_names_of_one_address,
    names_that_share_an_address,
    a_process_that_never_asked,
    containers_each_ask_for_themselves,
    a_namespace_without_a_way_out_is_not_listened_to,
    forged_answers,
    live,
    live_until_nobody_reads,
];

const PORT: u16 = 8083;
/// Where dnsmasq answers.
const LOCAL: &str = "127.0.0.1";
/// Where names with an IPv4 address point to.
const ADDRESS: &str = "127.0.0.2";

const RECORDS: &[&str] = &[
    "--host-record=www.example.test,127.0.0.2,::1",
    "--host-record=one.example.test,127.0.0.2",
    "--host-record=two.example.test,127.0.0.2",
    "--host-record=three.example.test,127.0.0.2",
    "--cname=alias.example.test,middle.example.test",
    "--cname=middle.example.test,www.example.test",
    "--addn-hosts=/tmp/many-hosts",
];

fn of_a_short_lived_client_over_ipv4() -> Result<()> {
    on_stage(|stage| {
        let curl = stage.curl("--ipv4", "www.example.test")?;
        expect(&curl, &named("www.example.test"))?;
        expect(&curl, &vec![("/destination/ip", json!(ADDRESS))])
    })
}

fn of_a_short_lived_client_over_ipv6() -> Result<()> {
    on_stage(|stage| {
        let curl = stage.curl("--ipv6", "www.example.test")?;
        expect(&curl, &named("www.example.test"))?;
        expect(&curl, &vec![("/destination/ip", json!("::1"))])
    })
}

fn the_name_asked_for_at_the_head_of_a_chain() -> Result<()> {
    on_stage(|stage| expect(&stage.curl("--ipv4", "alias.example.test")?, &named("alias.example.test")))
}

/// 60 addresses do not fit into the 512 bytes of a UDP answer.
fn of_a_truncated_answer_that_came_by_tcp() -> Result<()> {
    on_stage(|stage| {
        let curl = stage.curl("--ipv4", "many.example.test")?;
        expect(&curl, &named("many.example.test"))?;
        // The client did take the long way: it has a flow of its own to the server of names.
        stage.watch.wait_for("a question by TCP", |document| {
            document["process"]["pid"] == curl["process"]["pid"]
                && document["destination"]["port"] == 53
                && document["network"]["transport"] == "tcp"
        })?;
        Ok(())
    })
}

fn two_names_of_one_address() -> Result<()> {
    on_stage(|stage| {
        let names = ["one.example.test", "two.example.test"];
        let clients = names.map(|name| Ok::<_, anyhow::Error>((name, start_curl("--ipv4", name)?)));
        for client in clients {
            let (name, curl) = client?;
            let document = stage.document_of(curl)?;
            expect(&document, &named(name))?;
            expect(&document, &vec![("/destination/ip", json!(ADDRESS))])?;
        }
        Ok(())
    })
}

/// As with a CDN or an ingress: each connect begins as soon as its name is resolved.
fn names_that_share_an_address() -> Result<()> {
    const ROUNDS: usize = 20;
    const ORDER: [&str; 6] = ["one", "two", "one", "three", "two", "one"];
    on_stage(|stage| {
        let asked = ORDER.iter().cycle().take(ORDER.len() * ROUNDS);
        let connect = |(number, name): (usize, &&str)| {
            let name = format!("{name}.example.test");
            let by_another_thread = number % 2 == 1;
            if by_another_thread {
                thread::scope(|scope| scope.spawn(|| look_up(&name)).join().expect("it does not panic"))?;
            } else {
                look_up(&name)?;
            }
            let connected = TcpStream::connect((ADDRESS, PORT)).context("connect by name")?;
            Ok((connected.local_addr()?.port(), name))
        };
        let connected = asked.enumerate().map(connect).collect::<Result<Vec<_>>>()?;
        let (mut wrong, mut without) = (0, 0);
        for (port, name) in connected {
            let document = stage.watch.wait_for("the test's own document", |document| {
                document["process"]["pid"] == std::process::id()
                    && document["source"]["port"] == port
                    && document["destination"]["port"] == PORT
            })?;
            match document["destination"]["domain"].as_str() {
                Some(told) => wrong += usize::from(told != name),
                None => without += 1,
            }
        }
        ensure!((wrong, without) == (0, 0), "{wrong} flows with another's name, {without} without");
        Ok(())
    })
}

/// Asks the name server for a name's address.
fn look_up(name: &str) -> Result<()> {
    let asker = UdpSocket::bind((LOCAL, 0))?;
    asker.set_read_timeout(Some(Duration::from_secs(20)))?;
    asker.send_to(&question(0x5a18, name), (LOCAL, 53))?;
    asker.recv_from(&mut [0; 512]).with_context(|| format!("get the answer for {name}"))?;
    Ok(())
}

/// Others did, for the same address, before and after.
fn a_process_that_never_asked() -> Result<()> {
    on_stage(|stage| {
        stage.curl("--ipv4", "www.example.test")?;
        let silent = stage.curl("--ipv4", ADDRESS)?;
        stage.curl("--ipv4", "one.example.test")?;
        expect(&silent, &nameless())?;
        // The web server did not ask for its clients' names either.
        let of_server = |document: &Value| document["process"]["name"] == "httpd";
        expect(&stage.watch.wait_for("the server's document", of_server)?, &nameless())
    })
}

/// Two network namespaces ask the host's server of names through interfaces of their own, and know one address by
/// different names.
fn containers_each_ask_for_themselves() -> Result<()> {
    const ADDRESSES: [&str; 2] = ["10.9.0.8", "10.9.0.9"];
    on_stage(|stage| {
        let names = ["one.example.test", "two.example.test"];
        for address in ADDRESSES {
            shell(&format!("ip addr add {address}/32 dev lo"))?;
        }
        let [web, server] = ADDRESSES;
        let records = names.map(|name| format!("--host-record={name},{web}"));
        let records: Vec<_> = records.iter().map(String::as_str).collect();
        let _server = start_server_at(server, &records)?;
        let containers: Vec<_> = (1..).zip(names).map(|(number, name)| container(number, name)).collect();
        for (name, curl) in names.into_iter().zip(containers) {
            let document = stage.document_of(curl?)?;
            expect(&document, &named(name))?;
            expect(&document, &vec![("/destination/ip", json!(web))])?;
        }
        for address in ADDRESSES {
            shell(&format!("ip addr del {address}/32 dev lo"))?;
        }
        Ok(())
    })
}

/// A client in a network namespace of its own, which a pair of interfaces joins with the tests'.
fn container(number: u8, name: &str) -> Result<Process> {
    let inside = format!(
        "until ip link show ct >/dev/null 2>&1; do sleep 0.05; done
         ip addr add 10.9.{number}.2/24 dev ct
         ip link set ct up
         ip route add default via 10.9.{number}.1
         exec curl -sS --ipv4 http://{name}:{PORT}/"
    );
    let curl = Process::start(&["unshare", "-n", "sh", "-c", &inside])?;
    let (link, pid) = (format!("host{number}"), curl.pid);
    // Before it has its own namespace, the interface would come back to ours.
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
    until("a network namespace", || Ok(namespace(&pid.to_string())? != namespace("self")?))?;
    shell(&format!(
        "ip link add {link} type veth
         peer=$(ip link show {link} | sed -n 's/.*{link}@\\([^:]*\\):.*/\\1/p')
         ip link set $peer name ct
         ip link set ct netns {pid}
         ip addr add 10.9.{number}.1/24 dev {link}
         ip link set {link} up"
    ))?;
    Ok(curl)
}

/// Packets are listened to in the monitor's own network namespace. What is asked and answered inside another one is
/// not heard: its flows have no name, and not that of a namespace in which the same address is another host's.
fn a_namespace_without_a_way_out_is_not_listened_to() -> Result<()> {
    on_stage(|stage| {
        let url = format!("http://inside.example.test:{PORT}/");
        let script = format!(
            "ip link set lo up
         httpd -f -p {PORT} -h /srv/www & web=$!
         {} --host-record=inside.example.test,{ADDRESS} & names=$!
         until grep -q :0035 /proc/net/udp && grep -q :{PORT:04X} /proc/net/tcp*; do sleep 0.1; done
         curl -sS --ipv4 {url}; status=$?
         kill $web $names
         exit $status",
            server(LOCAL, &[]).join(" ")
        );
        let inside = Process::start(&["unshare", "-n", "sh", "-c", &script])?;
        stage.curl("--ipv4", "www.example.test")?;
        let inside = inside.finish()?;
        ensure!(inside.status == 0 && inside.stdout == stage.web.page(), "{inside:?}");
        let document = stage.watch.wait_for("the document of the client inside", |document| {
            document["process"]["args"].as_array().is_some_and(|args| args.contains(&json!(url)))
                && document["destination"]["port"] == PORT
        })?;
        expect(&document, &vec![("/destination/ip", json!(ADDRESS))])?;
        expect(&document, &nameless())
    })
}

/// What nobody was asked for names nothing; the right answer to the same kind of question does.
fn forged_answers() -> Result<()> {
    on_stage(|stage| {
        let cases: [(&str, Answer); 4] = [
            ("another id", |talk| talk.server.send_to(&answer(talk.id ^ 1, talk.name, talk.ip), talk.asker)),
            ("another source", |talk| talk.liar.send_to(&answer(talk.id, talk.name, talk.ip), talk.asker)),
            ("another question", |talk| {
                talk.server.send_to(&answer(talk.id, "evil.example.test", talk.ip), talk.asker)
            }),
            ("nothing wrong", |talk| talk.server.send_to(&answer(talk.id, talk.name, talk.ip), talk.asker)),
        ];
        for (number, (what, reply)) in (1..).zip(cases) {
            // An address and a name for each: this process remembers what it has learnt.
            let (ip, name) = (Ipv4Addr::new(127, 0, 3, number), format!("case{number}.example.test"));
            let document = connect_after(stage, &name, ip, reply).with_context(|| what.to_owned())?;
            let wanted = if what == "nothing wrong" { named(&name) } else { nameless() };
            expect(&document, &wanted).with_context(|| format!("an answer with {what}"))?;
        }
        Ok(())
    })
}

/// `socktrail names` tells who asked, and what the answer was.
fn live() -> Result<()> {
    let (_web, _server) = (WebServer::start(PORT)?, start_server()?);
    let watch = Socktrail::start(&["names", "--format", "ecs"])?;
    for (family, address) in [("--ipv4", ADDRESS), ("--ipv6", "::1")] {
        let curl = start_curl(family, "www.example.test")?.finish()?;
        ensure!(curl.status == 0, "{curl:?}");
        let has_address = |line: &Value| {
            let addresses = line["addresses"].as_array();
            addresses.is_some_and(|addresses| addresses.iter().any(|one| one["ip"] == address))
        };
        let line = watch.wait_for(&format!("the line for {address}"), |line| {
            line["process"]["pid"] == curl.pid && has_address(line)
        })?;
        expect(&line, &vec![("/name", json!("www.example.test")), ("/process/name", json!("curl"))])?;
    }
    // What was looked up just before the end is still written.
    let last = start_curl("--ipv4", "one.example.test")?.finish()?;
    let told = watch.stop()?;
    ensure!(told.status.success(), "{}:\n{}", told.status, told.log);
    let is_last = |line: &Value| line["process"]["pid"] == last.pid && line["name"] == "one.example.test";
    ensure!(told.documents.iter().any(is_last), "no line of {last:?}: {:#?}", told.documents);
    Ok(())
}

/// `socktrail names` ends when nobody reads it any more, though it has nothing to write.
fn live_until_nobody_reads() -> Result<()> {
    const LONG: Duration = Duration::from_secs(60);
    let started = Instant::now();
    let ended = Process::start(&["sh", "-c", "socktrail names --duration 60s | true"])?.finish()?;
    ensure!(ended.status == 0 && started.elapsed() < LONG, "after {:?}: {ended:?}", started.elapsed());
    Ok(())
}

/// A web server, a server of names, and a monitor that does not wait long for packets that come after the end.
struct Stage {
    web: WebServer,
    watch: Socktrail,
    _names: Process,
}

/// Plays on a stage, and ends the monitor: one that is killed leaves what it mounted to the tests that follow.
fn on_stage(play: impl FnOnce(&Stage) -> Result<()>) -> Result<()> {
    let stage = Stage::start()?;
    let played = play(&stage);
    let watched = stage.watch.stop()?;
    played?;
    ensure!(watched.status.success(), "socktrail ended with {}:\n{}", watched.status, watched.log);
    Ok(())
}

impl Stage {
    fn start() -> Result<Self> {
        let (web, names) = (WebServer::start(PORT)?, start_server()?);
        Ok(Self { web, _names: names, watch: Socktrail::flows(&["--flow-termination-timeout", "500ms"])? })
    }

    /// The document of a client that asks for the page of a host.
    fn curl(&self, family: &str, host: &str) -> Result<Value> {
        self.document_of(start_curl(family, host)?)
    }

    fn document_of(&self, curl: Process) -> Result<Value> {
        let curl = curl.finish()?;
        ensure!(curl.status == 0 && curl.stdout == self.web.page(), "{curl:?}");
        self.watch.wait_for("the client's document", |document| {
            document["process"]["pid"] == curl.pid && document["destination"]["port"] == PORT
        })
    }
}

fn start_curl(family: &str, host: &str) -> Result<Process> {
    Process::start(&["curl", "-sS", family, &format!("http://{host}:{PORT}/")])
}

/// Starts dnsmasq on loopback, as the one server that programs ask.
fn start_server() -> Result<Process> {
    let many: String = (1..=60).map(|number| format!("127.0.2.{number} many.example.test\n")).collect();
    fs::write("/tmp/many-hosts", many).context("write the names with many addresses")?;
    start_server_at(LOCAL, RECORDS)
}

fn start_server_at(address: &str, records: &[&str]) -> Result<Process> {
    fs::write("/etc/resolv.conf", format!("nameserver {address}\n")).context("name the server of names")?;
    let process = Process::start(&server(address, records).iter().map(String::as_str).collect::<Vec<_>>())?;
    let octets = address.parse::<Ipv4Addr>()?.octets();
    let socket = format!(" {:08X}:0035 ", u32::from_ne_bytes(octets));
    until("the server of names", || {
        let listens = |table: &str| fs::read_to_string(table).is_ok_and(|sockets| sockets.contains(&socket));
        Ok(listens("/proc/net/udp") && listens("/proc/net/tcp"))
    })?;
    Ok(process)
}

/// dnsmasq's command line: it is to know what it is told and nothing else.
fn server(address: &str, records: &[&str]) -> Vec<String> {
    let own = "dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= --user=root --no-resolv --no-hosts \
               --bind-interfaces";
    let words = own.split_whitespace().chain(records.iter().copied()).map(str::to_owned);
    words.chain([format!("--listen-address={address}")]).collect()
}

/// Runs a script that must go well.
fn shell(script: &str) -> Result<()> {
    let done = Process::start(&["sh", "-e", "-c", script])?.finish()?;
    ensure!(done.status == 0, "{done:?}");
    Ok(())
}

fn named(name: &str) -> Wanted {
    let mut wanted = nameless();
    wanted.retain(|(path, _)| path.starts_with("/source") || path.starts_with("/client"));
    wanted.extend([
        ("/destination/domain", json!(name)),
        ("/server/domain", json!(name)),
        ("/related/hosts", json!([name])),
    ]);
    wanted
}

fn nameless() -> Wanted {
    ["/source/domain", "/client/domain", "/destination/domain", "/server/domain", "/related/hosts"]
        .map(|path| (path, Value::Null))
        .into()
}

/// How a question is answered.
type Answer = fn(&Talk<'_>) -> std::io::Result<usize>;

/// A question that has arrived at its server.
struct Talk<'a> {
    server: &'a UdpSocket,
    /// Somebody whom nobody asked.
    liar: &'a UdpSocket,
    asker: SocketAddr,
    id: u16,
    name: &'a str,
    ip: Ipv4Addr,
}

/// Asks for a name, has that answered, connects to the address; returns the document of the connection.
fn connect_after(stage: &Stage, name: &str, ip: Ipv4Addr, reply: Answer) -> Result<Value> {
    const ID: u16 = 0x5a17;
    let server = UdpSocket::bind("127.0.0.9:53").context("bind the server")?;
    let liar = UdpSocket::bind("127.0.0.10:53").context("bind the liar")?;
    let asker = UdpSocket::bind("127.0.0.1:0")?;
    for socket in [&server, &asker] {
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    }
    asker.send_to(&question(ID, name), server.local_addr()?)?;
    let mut datagram = [0; 512];
    let (_, from) = server.recv_from(&mut datagram).context("get the question")?;
    reply(&Talk { server: &server, liar: &liar, asker: from, id: ID, name, ip }).context("answer")?;
    asker.recv_from(&mut datagram).context("get the answer")?;

    let here = TcpStream::connect((ip, PORT))?.local_addr()?;
    stage.watch.wait_for("the test's own document", |document| {
        document["process"]["pid"] == std::process::id()
            && document["source"]["port"] == here.port()
            && document["destination"]["ip"] == ip.to_string()
    })
}

/// A question for an A record (RFC 1035, section 4).
fn question(id: u16, name: &str) -> Vec<u8> {
    const RECURSION_DESIRED: u16 = 0x0100;
    let mut message: Vec<u8> = [id, RECURSION_DESIRED, 1, 0, 0, 0].into_iter().flat_map(u16::to_be_bytes).collect();
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend([0, 1, 0, 1]); // A, IN
    message
}

/// The answer to it.
fn answer(id: u16, name: &str, ip: Ipv4Addr) -> Vec<u8> {
    let mut message = question(id, name);
    message[2..4].copy_from_slice(&[0x81, 0x80]); // an answer, recursion available
    message[7] = 1; // one record
    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]); // the question's name, A, IN, 60 s, 4 bytes
    message.extend(ip.octets());
    message
}
