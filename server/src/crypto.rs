//! The one implementation of cryptography that TLS uses.

/// Makes ring what every TLS connection of this process uses. Call it before the first one; another call, or a
/// program that chose before, changes nothing.
pub fn install() {
    // The error says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
