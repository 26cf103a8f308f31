//! TLS, and which certificates are trusted. It uses rustls with Graviola, or with ring on processors that Graviola does not support.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned};
use sha2::{Digest, Sha256};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use crate::output::OutputError;

/// The certificates to trust, and the client certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM files with certificates of trusted authorities. If empty, the host's trusted authorities are used.
    pub certificate_authorities: Vec<PathBuf>,
    /// The SHA-256 of a certificate to trust, which the server must present: its own, or that of an authority in its chain.
    pub fingerprint: Option<[u8; 32]>,
    /// PEM files with the client certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// Reads certificates, and makes the configuration of all connections.
///
/// # Errors
/// A file cannot be read or contains nothing usable, or this CPU lacks instructions that the cryptography needs.
pub fn config(options: &TlsOptions) -> Result<Arc<ClientConfig>, OutputError> {
    config_with(Arc::new(provider()?), options)
}

fn config_with(provider: Arc<CryptoProvider>, options: &TlsOptions) -> Result<Arc<ClientConfig>, OutputError> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| OutputError::new(format!("TLS: {error}"), ""))?;
    let builder = match options.fingerprint {
        Some(fingerprint) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { fingerprint, provider }))
        }
        None => builder.with_root_certificates(authorities(&options.certificate_authorities)?),
    };
    let config = match &options.certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error.to_string()))?;
            builder.with_client_auth_cert(chain, private).map_err(|error| unusable(key, &error.to_string()))?
        }
    };
    Ok(Arc::new(config))
}

/// The cryptography provider: Graviola, if the CPU supports it.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn provider() -> Result<CryptoProvider, OutputError> {
    match missing_feature() {
        None => Ok(rustls_graviola::default_provider()),
        Some(feature) => provider_without(feature),
    }
}

#[cfg(target_arch = "x86")]
fn provider() -> Result<CryptoProvider, OutputError> {
    provider_without("64 bits")
}

/// The cryptography provider for processors that Graviola does not support.
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn provider_without(_feature: &str) -> Result<CryptoProvider, OutputError> {
    Ok(rustls::crypto::ring::default_provider())
}

/// Fails. There is no ring for aarch64, because building it on another machine needs a C cross compiler.
#[cfg(target_arch = "aarch64")]
fn provider_without(feature: &str) -> Result<CryptoProvider, OutputError> {
    let problem = format!("TLS needs a CPU with {feature}, which this one lacks");
    Err(OutputError::new(problem, "use http:// and a TLS proxy on this host"))
}

/// The CPU feature that Graviola needs and this CPU lacks, if there is one.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn missing_feature() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let has = [
        ("AES", is_x86_feature_detected!("aes")),
        ("PCLMULQDQ", is_x86_feature_detected!("pclmulqdq")),
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("BMI1", is_x86_feature_detected!("bmi1")),
        ("BMI2", is_x86_feature_detected!("bmi2")),
        ("ADX", is_x86_feature_detected!("adx")),
    ];
    #[cfg(target_arch = "aarch64")]
    let has = [
        ("AES", std::arch::is_aarch64_feature_detected!("aes")),
        ("PMULL", std::arch::is_aarch64_feature_detected!("pmull")),
        ("SHA2", std::arch::is_aarch64_feature_detected!("sha2")),
    ];
    has.into_iter().find(|(_, there)| !there).map(|(name, _)| name)
}

fn authorities(files: &[PathBuf]) -> Result<RootCertStore, OutputError> {
    let mut store = RootCertStore::empty();
    for file in files {
        for certificate in certificates(file)? {
            store.add(certificate).map_err(|error| unusable(file, &error.to_string()))?;
        }
    }
    if files.is_empty() {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if store.is_empty() {
        let remedy = "set output.elasticsearch.ssl.certificate_authorities, or install ca-certificates";
        return Err(OutputError::new("this host has no certificates of trusted authorities", remedy));
    }
    Ok(store)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, OutputError> {
    let error = |error: rustls::pki_types::pem::Error| unusable(file, &error.to_string());
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).map_err(error)?.collect();
    let found = found.map_err(error)?;
    if found.is_empty() { Err(unusable(file, "it contains no certificate")) } else { Ok(found) }
}

fn unusable(file: &Path, problem: &str) -> OutputError {
    OutputError::new(format!("{}: {problem}", file.display()), "expected PEM: -----BEGIN …")
}

/// The TLS error that made a request fail, if there is one.
pub fn cause(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// Whether a certificate was not accepted: the server's, or the client certificate.
pub fn is_certificate_error(error: &rustls::Error) -> bool {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => true,
        rustls::Error::AlertReceived(alert) => matches!(
            alert,
            Alert::NoCertificate
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::CertificateRequired
        ),
        _ => false,
    }
}

/// The remedy for a certificate that is not accepted.
pub fn remedy(error: &rustls::Error) -> &'static str {
    use rustls::CertificateError as Problem;
    const CLIENT_CERTIFICATE: &str = "check output.elasticsearch.ssl.certificate and output.elasticsearch.ssl.key";
    match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            Problem::UnknownIssuer => {
                "name the authority that has signed it in output.elasticsearch.ssl.certificate_authorities"
            }
            Problem::NotValidForName | Problem::NotValidForNameContext { .. } => {
                "write the host as the certificate names it"
            }
            Problem::Expired | Problem::ExpiredContext { .. } => "renew it, or set the clock",
            Problem::Other(other) if other.0.is::<WrongFingerprint>() => {
                "check output.elasticsearch.ssl.ca_trusted_fingerprint"
            }
            _ => "",
        },
        rustls::Error::AlertReceived(_) if is_certificate_error(error) => CLIENT_CERTIFICATE,
        _ => "",
    }
}

/// The text of a TLS error. `Display` of [`rustls::Error`] would show a verifier's own error with `Debug`.
pub fn text(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => other.0.to_string(),
        _ => error.to_string(),
    }
}

/// The error if no certificate has the fingerprint.
#[derive(Debug, thiserror::Error)]
#[error("no certificate of the server has the fingerprint")]
struct WrongFingerprint;

/// Trusts one certificate by its fingerprint: the server's own, or that of an authority that the server presents.
#[derive(Debug)]
struct Pinned {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn matches(&self, certificate: &CertificateDer<'_>) -> bool {
        Sha256::digest(certificate).as_slice() == self.fingerprint
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.matches(own) {
            return Ok(ServerCertVerified::assertion());
        }
        let Some(authority) = others.iter().find(|other| self.matches(other)) else {
            let error = rustls::OtherError(Arc::new(WrongFingerprint));
            return Err(rustls::CertificateError::Other(error).into());
        };
        let mut store = RootCertStore::empty();
        store.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(store.into(), Arc::clone(&self.provider)).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(own, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Wraps connections to `https` hosts.
pub struct TlsConnector(pub Option<Arc<ClientConfig>>);

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(plain) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(plain)));
        }
        let config = self.0.clone().ok_or(ureq::Error::Tls("it is not configured"))?;
        let host = details.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host).map_err(|_| ureq::Error::Tls("the host has no valid name"))?.to_owned();
        let mut connection = ClientConnection::new(config, name)?;
        let mut socket = TransportAdapter::new(plain.boxed(), details.current_time.clone());
        socket.set_timeout(details.timeout);
        connection.complete_io(&mut socket)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { buffers, stream: StreamOwned::new(connection, socket) })))
    }
}

/// The alert that a server sent before it closed the connection, or another error in what it sent. With TLS 1.3, a server refuses a
/// client certificate only after the client has completed its handshake, so writing may fail before the alert is read.
fn last_alert<S: Read + Write>(stream: &mut StreamOwned<ClientConnection, S>) -> Option<rustls::Error> {
    // `StreamOwned::read` would write first, and fail.
    while stream.conn.read_tls(&mut stream.sock).ok()? > 0 {
        if let Err(error) = stream.conn.process_new_packets() {
            return Some(error);
        }
    }
    None
}

/// A connection with TLS.
pub struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl TlsTransport {
    /// What is behind an error: if the server has closed the connection, the alert that it sent before.
    fn reason_for(&mut self, error: io::Error) -> ureq::Error {
        let is_closed = matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        let alert = if is_closed { last_alert(&mut self.stream) } else { None };
        alert.map_or_else(|| error.into(), ureq::Error::Rustls)
    }
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let written = self.stream.write_all(&self.buffers.output()[..amount]);
        written.map_err(|error| self.reason_for(error))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        // It also writes what `write_all` could not: that does not report an error of its last write.
        let read = self.stream.read(self.buffers.input_append_buf()).map_err(|error| self.reason_for(error))?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use rustls::server::WebPkiClientVerifier;
    use rustls::{ServerConfig, ServerConnection};

    use super::*;

    fn file(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls").join(name)
    }

    /// A server that accepts clients whose certificate the authority has signed.
    fn server(provider: &Arc<CryptoProvider>) -> ServerConnection {
        let roots = authorities(&[file("authority.pem")]).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider)).build().unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_client_cert_verifier(verifier);
        let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
        let config = builder.with_single_cert(certificates(&file("server.pem")).unwrap(), key).unwrap();
        ServerConnection::new(Arc::new(config)).unwrap()
    }

    /// Both ends read what the other has written, until neither has more to write.
    fn talk(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), rustls::Error> {
        while client.wants_write() || server.wants_write() {
            let (mut there, mut back) = (Vec::new(), Vec::new());
            client.write_tls(&mut there).unwrap();
            server.write_tls(&mut back).unwrap();
            let (mut there, mut back) = (&there[..], &back[..]);
            while !there.is_empty() {
                server.read_tls(&mut there).unwrap();
                server.process_new_packets()?;
            }
            while !back.is_empty() {
                client.read_tls(&mut back).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok(())
    }

    /// A connection that the server has closed. It has sent these bytes before.
    struct Closed<'a>(&'a [u8]);

    impl Read for Closed<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0.read(buf)
        }
    }

    impl Write for Closed<'_> {
        fn write(&mut self, _buf: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_server_that_closes_without_a_client_certificate_tells_why() {
        let provider = Arc::new(provider().unwrap());
        let options = TlsOptions { certificate_authorities: vec![file("authority.pem")], ..TlsOptions::default() };
        let config = config_with(Arc::clone(&provider), &options).unwrap();
        let mut client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        let mut server = server(&provider);
        assert_eq!(talk(&mut client, &mut server), Err(rustls::Error::NoCertificatesPresented));
        assert!(!client.is_handshaking());
        let mut alert = Vec::new();
        server.write_tls(&mut alert).unwrap();
        client.writer().write_all(b"documents").unwrap();
        for (said, expected) in [(&alert[..], Some(rustls::AlertDescription::CertificateRequired)), (&[], None)] {
            let mut stream = StreamOwned::new(client, Closed(said));
            assert_eq!(last_alert(&mut stream), expected.map(rustls::Error::AlertReceived));
            client = stream.conn;
        }
    }

    #[test]
    fn both_providers_talk_to_each_other() {
        let ring = Arc::new(provider_without("AVX2").unwrap());
        let other = Arc::new(provider().unwrap());
        for (ours, theirs) in [(&ring, &other), (&other, &ring), (&ring, &ring)] {
            for authority in ["authority.pem", "stranger.pem"] {
                let options = TlsOptions {
                    certificate_authorities: vec![file(authority)],
                    certificate: Some((file("client.pem"), file("client.key"))),
                    ..TlsOptions::default()
                };
                let config = config_with(Arc::clone(ours), &options).unwrap();
                let mut client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
                let mut server = server(theirs);
                let talked = talk(&mut client, &mut server);
                if authority == "stranger.pem" {
                    assert_eq!(talked, Err(rustls::CertificateError::UnknownIssuer.into()));
                    continue;
                }
                talked.unwrap();
                client.writer().write_all(b"documents").unwrap();
                talk(&mut client, &mut server).unwrap();
                let mut read = [0; 9];
                server.reader().read_exact(&mut read).unwrap();
                assert_eq!(&read, b"documents");
            }
        }
    }
}
