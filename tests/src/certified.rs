//! A cluster with certificates: its authority, and folders of members that it made.

use std::path::{Path, PathBuf};

use banyan_ca::{Authority, member};
use banyan_proto::{Credentials, Identity, Role, Transport};
use tempfile::TempDir;

/// An authority in a folder that goes with it.
pub struct Certified {
    folder: TempDir,
    /// What signs.
    pub authority: Authority,
}

impl Certified {
    /// Makes the authority of the cluster `default`.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn new() -> Certified {
        let folder = tempfile::tempdir().expect("a folder for certificates");
        let cluster = "default".parse().expect("a valid name");
        let authority = Authority::init(&folder.path().join("ca"), cluster).expect("a new folder has no authority");
        Certified { folder, authority }
    }

    /// The authority's folder.
    pub fn dir(&self) -> String {
        self.path("ca").display().to_string()
    }

    /// A folder of that name, which may not be there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a member's folder, named by its role and name.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn issue(&self, role: Role, name: &str) -> PathBuf {
        self.issue_for(role, name, banyan_ca::VALID, &[])
    }

    /// The same, good for so long, with names for others.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn issue_for(&self, role: Role, name: &str, valid: std::time::Duration, names: &[String]) -> PathBuf {
        let folder = self.path(&format!("{role}-{name}"));
        let identity =
            Identity { cluster: self.authority.cluster().clone(), role, name: name.parse().expect("a test's name is a name") };
        member::issue(&self.authority, &folder, &identity, valid, names).expect("the folder can be written");
        folder
    }

    /// As whom to dial.
    ///
    /// # Panics
    /// When it can't be made.
    pub fn transport(&self, role: Role, name: &str) -> Transport {
        read(&self.issue(role, name))
    }
}

impl Default for Certified {
    fn default() -> Self {
        Self::new()
    }
}

/// The transport of a member's folder.
///
/// # Panics
/// When it holds no good certificate.
pub fn read(folder: &Path) -> Transport {
    Transport::mutual(Credentials::read(folder).expect("the folder holds a good certificate"))
}
