//! A flow has the DNS name that its process looked up, and no other.
//!
//! The DNS server is dnsmasq, and the client is curl. The test itself sends responses that no real server sends. The
//! names have loopback addresses, on which the guest's web server listens.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::helpers::document::{ExpectedFields, expect};
use crate::helpers::process::Process;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::wait::wait_until;
use crate::helpers::web::WebServer;

tests![
    of_a_short_lived_client_over_ipv4,
    of_a_short_lived_client_over_ipv6,
    the_queried_name_of_a_cname_chain,
    of_a_truncated_response_repeated_over_tcp,
    two_names_of_one_address,
    names_that_share_an_address,
    a_process_without_a_lookup,
    containers_have_their_own_names,
    a_namespace_without_links_has_no_names,
    forged_responses,
    the_names_command,
    the_names_command_ends_when_its_reader_does,
];

const PORT: u16 = 8083;
/// The address of dnsmasq.
const LOCAL: &str = "127.0.0.1";
/// The IPv4 address of most names.
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
    with_fixture(|fixture| {
        let curl = fixture.curl("--ipv4", "www.example.test")?;
        expect(&curl, &named("www.example.test"))?;
        expect(&curl, &vec![("/destination/ip", json!(ADDRESS))])
    })
}

fn of_a_short_lived_client_over_ipv6() -> Result<()> {
    with_fixture(|fixture| {
        let curl = fixture.curl("--ipv6", "www.example.test")?;
        expect(&curl, &named("www.example.test"))?;
        expect(&curl, &vec![("/destination/ip", json!("::1"))])
    })
}

fn the_queried_name_of_a_cname_chain() -> Result<()> {
    with_fixture(|fixture| expect(&fixture.curl("--ipv4", "alias.example.test")?, &named("alias.example.test")))
}

/// 60 addresses do not fit into a UDP response of 512 bytes.
fn of_a_truncated_response_repeated_over_tcp() -> Result<()> {
    with_fixture(|fixture| {
        let curl = fixture.curl("--ipv4", "many.example.test")?;
        expect(&curl, &named("many.example.test"))?;
        // The client has repeated the query over TCP.
        fixture.monitor.wait_for("a query over TCP", |document| {
            document["process"]["pid"] == curl["process"]["pid"]
                && document["destination"]["port"] == 53
                && document["network"]["transport"] == "tcp"
        })?;
        Ok(())
    })
}

fn two_names_of_one_address() -> Result<()> {
    with_fixture(|fixture| {
        let names = ["one.example.test", "two.example.test"];
        let clients = names.map(|name| Ok::<_, anyhow::Error>((name, start_curl("--ipv4", name)?)));
        for client in clients {
            let (name, curl) = client?;
            let document = fixture.document_of(curl)?;
            expect(&document, &named(name))?;
            expect(&document, &vec![("/destination/ip", json!(ADDRESS))])?;
        }
        Ok(())
    })
}

/// As with a CDN or an ingress. Each connect begins as soon as its name is resolved.
fn names_that_share_an_address() -> Result<()> {
    const ROUNDS: usize = 20;
    const ORDER: [&str; 6] = ["one", "two", "one", "three", "two", "one"];
    with_fixture(|fixture| {
        let names = ORDER.iter().cycle().take(ORDER.len() * ROUNDS);
        let connect = |(number, name): (u16, &&str)| {
            let name = format!("{name}.example.test");
            let by_another_thread = number % 2 == 1;
            if by_another_thread {
                thread::scope(|scope| scope.spawn(|| look_up(number, &name)).join().expect("it does not panic"))?;
            } else {
                look_up(number, &name)?;
            }
            let connected = TcpStream::connect((ADDRESS, PORT)).context("connect by name")?;
            Ok((connected.local_addr()?.port(), name))
        };
        let connected = (0..).zip(names).map(connect).collect::<Result<Vec<_>>>()?;
        let mut reported = own_flows(fixture, connected.len())?;
        let (mut wrong, mut without) = (0, 0);
        for (port, name) in connected {
            let names = reported.get_mut(&port).and_then(VecDeque::pop_front);
            match names.with_context(|| format!("no document of the connection from port {port}"))? {
                Some(found) => wrong += usize::from(found != name),
                None => without += 1,
            }
        }
        ensure!(wrong == 0, "{wrong} flows with a wrong name, {without} without a name");
        // On a busy machine probes miss hits. If that hides a query, its process is unknown.
        ensure!(without == 0 || fixture.monitor.log().contains("were missed"), "{without} flows without a name");
        Ok(())
    })
}

/// The remote names of the test's own connections, by local port. The names of a port that was used twice are in the
/// order of the connections.
fn own_flows(fixture: &Fixture, wanted: usize) -> Result<HashMap<u16, VecDeque<Option<String>>>> {
    let mut own = Vec::new();
    wait_until("the test's own documents", || {
        own = fixture.monitor.documents()?;
        own.retain(|document| {
            document["process"]["pid"] == std::process::id() && document["destination"]["port"] == PORT
        });
        Ok(own.len() >= wanted)
    })?;
    own.sort_by_key(|document| document["event"]["start"].as_str().map(ToOwned::to_owned));
    let mut names: HashMap<_, VecDeque<_>> = HashMap::new();
    for document in own {
        let port = document["source"]["port"].as_u64().context("a port")?.try_into()?;
        names.entry(port).or_default().push_back(document["destination"]["domain"].as_str().map(ToOwned::to_owned));
    }
    Ok(names)
}

/// Queries the IPv4 address of a name, with this message id.
fn look_up(id: u16, name: &str) -> Result<()> {
    let client = UdpSocket::bind((LOCAL, 0))?;
    client.set_read_timeout(Some(Duration::from_secs(20)))?;
    client.send_to(&query(id, name), (LOCAL, 53))?;
    client.recv_from(&mut [0; 512]).with_context(|| format!("receive the response for {name}"))?;
    Ok(())
}

/// Other processes look up names of the same address, before and after.
fn a_process_without_a_lookup() -> Result<()> {
    with_fixture(|fixture| {
        fixture.curl("--ipv4", "www.example.test")?;
        let silent = fixture.curl("--ipv4", ADDRESS)?;
        fixture.curl("--ipv4", "one.example.test")?;
        expect(&silent, &nameless())?;
        // The web server does not look up its clients' names either.
        let of_server = |document: &Value| document["process"]["name"] == "httpd";
        expect(&fixture.monitor.wait_for("the server's document", of_server)?, &nameless())
    })
}

/// Two network namespaces query the host's DNS server through their own links. They know the same address by different
/// names.
fn containers_have_their_own_names() -> Result<()> {
    const ADDRESSES: [&str; 2] = ["10.9.0.8", "10.9.0.9"];
    with_fixture(|fixture| {
        let names = ["one.example.test", "two.example.test"];
        let _addresses = ADDRESSES.map(LoopbackAddress::add).into_iter().collect::<Result<Vec<_>>>()?;
        let [web, server] = ADDRESSES;
        let records = names.map(|name| format!("--host-record={name},{web}"));
        let records: Vec<_> = records.iter().map(String::as_str).collect();
        let _server = start_server_at(server, &records)?;
        let containers: Vec<_> = (1..).zip(names).map(|(number, name)| container(number, name)).collect();
        for (name, curl) in names.into_iter().zip(containers) {
            let document = fixture.document_of(curl?)?;
            expect(&document, &named(name))?;
            expect(&document, &vec![("/destination/ip", json!(web))])?;
        }
        Ok(())
    })
}

/// An address of loopback; dropping it removes the address.
struct LoopbackAddress(&'static str);

impl LoopbackAddress {
    fn add(address: &'static str) -> Result<Self> {
        shell(&format!("ip addr add {address}/32 dev lo"))?;
        Ok(Self(address))
    }
}

impl Drop for LoopbackAddress {
    fn drop(&mut self) {
        shell(&format!("ip addr del {}/32 dev lo", self.0)).ok();
    }
}

/// Starts curl in a new network namespace, which a pair of veth devices connects with the guest's.
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
    // Without a new namespace, the interface would stay in this one.
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
    wait_until("a network namespace", || Ok(namespace(&pid.to_string())? != namespace("self")?))?;
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

/// The monitor captures DNS packets in its own network namespace only. Flows of another namespace, whose DNS packets
/// stay inside it, have no name, even if a name of the same address was looked up elsewhere.
fn a_namespace_without_links_has_no_names() -> Result<()> {
    with_fixture(|fixture| {
        let url = format!("http://inside.example.test:{PORT}/");
        let script = format!(
            "ip link set lo up
         httpd -f -p {PORT} -h /srv/www & web=$!
         {} --host-record=inside.example.test,{ADDRESS} & names=$!
         until grep -q :0035 /proc/net/udp && grep -q :{PORT:04X} /proc/net/tcp*; do sleep 0.1; done
         curl -sS --ipv4 {url}; status=$?
         kill $web $names
         exit $status",
            dnsmasq(LOCAL, &[]).join(" ")
        );
        let inside = Process::start(&["unshare", "-n", "sh", "-c", &script])?;
        fixture.curl("--ipv4", "www.example.test")?;
        let inside = inside.finish()?;
        ensure!(inside.status == 0 && inside.stdout == fixture.web.page(), "{inside:?}");
        let document = fixture.monitor.wait_for("the document of the client inside", |document| {
            document["process"]["args"].as_array().is_some_and(|args| args.contains(&json!(url)))
                && document["destination"]["port"] == PORT
        })?;
        expect(&document, &vec![("/destination/ip", json!(ADDRESS))])?;
        expect(&document, &nameless())
    })
}

/// Responses without a matching query name no flow; a correct response does.
fn forged_responses() -> Result<()> {
    with_fixture(|fixture| {
        let cases: [(&str, SendResponse); 4] = [
            ("another id", |query| query.server.send_to(&response(query.id ^ 1, query.name, query.ip), query.client)),
            ("another source", |query| query.forger.send_to(&response(query.id, query.name, query.ip), query.client)),
            ("another question", |query| {
                query.server.send_to(&response(query.id, "evil.example.test", query.ip), query.client)
            }),
            ("nothing wrong", |query| query.server.send_to(&response(query.id, query.name, query.ip), query.client)),
        ];
        for (number, (what, reply)) in (1..).zip(cases) {
            // A new address and name for each case: the monitor remembers the names of this process.
            let (ip, name) = (Ipv4Addr::new(127, 0, 3, number), format!("case{number}.example.test"));
            let document = connect_after(fixture, &name, ip, reply).with_context(|| what.to_owned())?;
            let wanted = if what == "nothing wrong" { named(&name) } else { nameless() };
            expect(&document, &wanted).with_context(|| format!("a response with {what}"))?;
        }
        Ok(())
    })
}

/// `socktrail names` prints the process of a query, and the addresses in the response.
fn the_names_command() -> Result<()> {
    let (_web, _server) = (WebServer::start(PORT)?, start_server()?);
    let monitor = Socktrail::start(&["names", "--format", "ecs"])?;
    for (family, address) in [("--ipv4", ADDRESS), ("--ipv6", "::1")] {
        let curl = start_curl(family, "www.example.test")?.finish()?;
        ensure!(curl.status == 0, "{curl:?}");
        let has_address = |line: &Value| {
            let addresses = line["addresses"].as_array();
            addresses.is_some_and(|addresses| addresses.iter().any(|one| one["ip"] == address))
        };
        let line = monitor.wait_for(&format!("the line for {address}"), |line| {
            line["process"]["pid"] == curl.pid && has_address(line)
        })?;
        expect(&line, &vec![("/name", json!("www.example.test")), ("/process/name", json!("curl"))])?;
    }
    // A lookup just before the end is still written.
    let last = start_curl("--ipv4", "one.example.test")?.finish()?;
    let output = monitor.stop()?;
    ensure!(output.status.success(), "{}:\n{}", output.status, output.log);
    let is_last = |line: &Value| line["process"]["pid"] == last.pid && line["name"] == "one.example.test";
    ensure!(output.documents.iter().any(is_last), "no line of {last:?}: {:#?}", output.documents);
    Ok(())
}

/// `socktrail names` ends when the reader of its output has ended, although it has nothing to write.
fn the_names_command_ends_when_its_reader_does() -> Result<()> {
    const LONG: Duration = Duration::from_secs(60);
    let started = Instant::now();
    let ended = Process::start(&["sh", "-c", "set -o pipefail; socktrail names --duration 60s | true"])?.finish()?;
    ensure!(ended.status == 0 && started.elapsed() < LONG, "after {:?}: {ended:?}", started.elapsed());
    Ok(())
}

/// A web server, a DNS server, and a monitor with a short termination timeout.
struct Fixture {
    web: WebServer,
    monitor: Socktrail,
    _dns: Process,
}

/// Runs a test, and stops the monitor even if the test fails: a killed monitor would leave tracefs mounted for other
/// tests. The test's error comes first.
fn with_fixture(test: impl FnOnce(&Fixture) -> Result<()>) -> Result<()> {
    let fixture = Fixture::start()?;
    let result = test(&fixture);
    let stopped = fixture.monitor.stop();
    result?;
    let output = stopped?;
    ensure!(output.status.success(), "socktrail ended with {}:\n{}", output.status, output.log);
    Ok(())
}

impl Fixture {
    fn start() -> Result<Self> {
        let (web, dns) = (WebServer::start(PORT)?, start_server()?);
        Ok(Self { web, _dns: dns, monitor: Socktrail::flows(&["--flow-termination-timeout", "500ms"])? })
    }

    /// The document of a curl that gets the page of a host.
    fn curl(&self, family: &str, host: &str) -> Result<Value> {
        self.document_of(start_curl(family, host)?)
    }

    fn document_of(&self, curl: Process) -> Result<Value> {
        let curl = curl.finish()?;
        ensure!(curl.status == 0 && curl.stdout == self.web.page(), "{curl:?}");
        self.monitor.wait_for("the client's document", |document| {
            document["process"]["pid"] == curl.pid && document["destination"]["port"] == PORT
        })
    }
}

fn start_curl(family: &str, host: &str) -> Result<Process> {
    Process::start(&["curl", "-sS", family, &format!("http://{host}:{PORT}/")])
}

/// Starts dnsmasq on loopback as the only DNS server of `/etc/resolv.conf`.
fn start_server() -> Result<Process> {
    let many: String = (1..=60).map(|number| format!("127.0.2.{number} many.example.test\n")).collect();
    fs::write("/tmp/many-hosts", many).context("write the hosts file for dnsmasq")?;
    start_server_at(LOCAL, RECORDS)
}

fn start_server_at(address: &str, records: &[&str]) -> Result<Process> {
    fs::write("/etc/resolv.conf", format!("nameserver {address}\n")).context("write /etc/resolv.conf")?;
    let process = Process::start(&dnsmasq(address, records).iter().map(String::as_str).collect::<Vec<_>>())?;
    let octets = address.parse::<Ipv4Addr>()?.octets();
    let socket = format!(" {:08X}:0035 ", u32::from_ne_bytes(octets));
    wait_until("the DNS server", || {
        let listens = |table: &str| fs::read_to_string(table).is_ok_and(|sockets| sockets.contains(&socket));
        Ok(listens("/proc/net/udp") && listens("/proc/net/tcp"))
    })?;
    Ok(process)
}

/// The command line of a dnsmasq that serves only these records.
fn dnsmasq(address: &str, records: &[&str]) -> Vec<String> {
    let own = "dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= --user=root --no-resolv --no-hosts \
               --bind-interfaces";
    let words = own.split_whitespace().chain(records.iter().copied()).map(str::to_owned);
    words.chain([format!("--listen-address={address}")]).collect()
}

/// Runs a shell script; fails if it does.
fn shell(script: &str) -> Result<()> {
    let done = Process::start(&["sh", "-e", "-c", script])?.finish()?;
    ensure!(done.status == 0, "{done:?}");
    Ok(())
}

fn named(name: &str) -> ExpectedFields {
    let mut wanted = nameless();
    wanted.retain(|(path, _)| path.starts_with("/source") || path.starts_with("/client"));
    wanted.extend([
        ("/destination/domain", json!(name)),
        ("/server/domain", json!(name)),
        ("/related/hosts", json!([name])),
    ]);
    wanted
}

fn nameless() -> ExpectedFields {
    ["/source/domain", "/client/domain", "/destination/domain", "/server/domain", "/related/hosts"]
        .map(|path| (path, Value::Null))
        .into()
}

/// Sends the response to a query.
type SendResponse = fn(&Query<'_>) -> std::io::Result<usize>;

/// A query that the server has received.
struct Query<'a> {
    server: &'a UdpSocket,
    /// A socket that has received no query.
    forger: &'a UdpSocket,
    client: SocketAddr,
    id: u16,
    name: &'a str,
    ip: Ipv4Addr,
}

/// Sends a query, sends a response to it, and connects to the address. Returns the document of the connection.
fn connect_after(fixture: &Fixture, name: &str, ip: Ipv4Addr, send_response: SendResponse) -> Result<Value> {
    const ID: u16 = 0x5a17;
    let server = UdpSocket::bind("127.0.0.9:53").context("bind the server")?;
    let forger = UdpSocket::bind("127.0.0.10:53").context("bind the forger")?;
    let client = UdpSocket::bind("127.0.0.1:0")?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    }
    client.send_to(&query(ID, name), server.local_addr()?)?;
    let mut datagram = [0; 512];
    let (_, from) = server.recv_from(&mut datagram).context("receive the query")?;
    let query = Query { server: &server, forger: &forger, client: from, id: ID, name, ip };
    send_response(&query).context("send the response")?;
    client.recv_from(&mut datagram).context("receive the response")?;

    let here = TcpStream::connect((ip, PORT))?.local_addr()?;
    fixture.monitor.wait_for("the test's own document", |document| {
        document["process"]["pid"] == std::process::id()
            && document["source"]["port"] == here.port()
            && document["destination"]["ip"] == ip.to_string()
    })
}

/// A query for an A record (RFC 1035, section 4).
fn query(id: u16, name: &str) -> Vec<u8> {
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

/// The response to it, with one A record.
fn response(id: u16, name: &str, ip: Ipv4Addr) -> Vec<u8> {
    let mut message = query(id, name);
    message[2..4].copy_from_slice(&[0x81, 0x80]); // QR, RD, RA
    message[7] = 1; // one answer record
    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]); // the question's name, A, IN, 60 s, 4 bytes
    message.extend(ip.octets());
    message
}
