//! An authority of a test's own, and certificates for servers that it vouches for.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// An authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A server's.
pub struct Certificate {
    /// In PEM.
    pub certificate: String,
    /// Its key, in PEM.
    pub key: String,
}

impl Default for Authority {
    fn default() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are good names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("the system has random numbers");
        Authority(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }
}

impl Authority {
    /// Writes its certificate to a file of this name.
    ///
    /// # Panics
    /// When there is no room.
    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, self.0.pem()).expect("there is room for a file");
        path
    }

    /// Vouches for a server of these names or addresses.
    ///
    /// # Panics
    /// When they are none.
    pub fn server(&self, names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("the system has random numbers");
        let params = CertificateParams::new(names).expect("names of servers");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Certificate { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}
