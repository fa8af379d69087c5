//! TLS to a PostgreSQL server: how much of the server's certificate is checked, and our own.
//!
//! Invariants: `verify-ca` checks all but the name, `verify-full` all. What is unverified is so because the connection
//! string asks for no more; the signatures of the handshake are checked all the same. Without a file of authorities those
//! of the system are believed, by the driver and by the tools alike.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{Code, Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::endpoint::{Tls, TlsMode};

/// Where systems keep the authorities that they believe, in one file.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// How much of TLS is used. As libpq has it: nothing said is "where the server has it", and "always" together with a file
/// of authorities is "with a certificate of these".
pub(super) fn mode(tls: &Tls) -> TlsMode {
    match tls.mode.unwrap_or(TlsMode::Preferred) {
        TlsMode::Required if tls.authorities.is_some() => TlsMode::VerifyCa,
        mode => mode,
    }
}

/// The file of authorities that verifies the server; none where it is not verified.
pub(super) fn authorities(tls: &Tls) -> Result<Option<PathBuf>> {
    if !matches!(mode(tls), TlsMode::VerifyCa | TlsMode::VerifyFull) {
        return Ok(None);
    }
    let system = || BUNDLES.into_iter().map(PathBuf::from).find(|path| path.is_file());
    tls.authorities.clone().or_else(system).map(Some).ok_or_else(|| {
        Error::new(
            Code::DatabaseCertificateUnknown,
            "The certificate of the server is to be verified, and this machine has no authorities",
        )
    })
}

/// The driver's configuration.
pub(super) fn config(tls: &Tls) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new(tls, Arc::clone(&provider))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(Code::Internal, "TLS cannot be set up").because(e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let Some(certificate) = &tls.certificate else { return Ok(builder.with_no_client_auth()) };
    let unusable = |what: &str, path: &Path| {
        let message = format!("{what} {} cannot be used", path.display());
        move |e| Error::new(Code::DatabaseClientCertificate, message).because(e)
    };
    let key = tls.key.as_ref().ok_or_else(|| {
        Error::new(Code::DatabaseClientCertificate, "A certificate of the client is named, but no key of it")
    })?;
    let chain = certificates(certificate).map_err(unusable("The certificate of the client", certificate))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(unusable("The key of the client", key))?;
    builder.with_client_auth_cert(chain, private).map_err(|e| {
        let message = format!("{} and {} do not fit together", certificate.display(), key.display());
        Error::new(Code::DatabaseClientCertificate, message).because(e)
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    let found = CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
    match found.is_empty() {
        true => Err(rustls::pki_types::pem::Error::NoItemsFound),
        false => Ok(found),
    }
}

#[derive(Debug)]
struct Verifier {
    /// None: unverified.
    believed: Option<Believed>,
    /// Whether the name counts.
    name: bool,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Believed {
    roots: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(tls: &Tls, provider: Arc<CryptoProvider>) -> Result<Self> {
        let name = mode(tls) == TlsMode::VerifyFull;
        let Some(path) = authorities(tls)? else {
            return Ok(Verifier { believed: None, name, provider });
        };
        let certificates = certificates(&path).map_err(|e| {
            let message = format!("The authorities in {} cannot be read", path.display());
            Error::new(Code::DatabaseCertificateUnknown, message).because(e)
        })?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        Ok(Verifier { believed: Some(Believed { roots, certificates }), name, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(believed) = &self.believed else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let signed = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &believed.roots,
            intermediates,
            now,
            algorithms,
        );
        match signed {
            // One that signed itself is no leaf by the rules, yet people name the server's own certificate as authority.
            // Its times were looked at before that.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if believed.certificates.iter().any(|c| c.as_ref() == end_entity.as_ref()) => {}
            other => other?,
        }
        if self.name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
