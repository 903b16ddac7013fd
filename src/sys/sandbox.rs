//! What this process may still do once it serves: open the files that the configuration names, and no others.
//!
//! `Config::reach` of each module -> [`Reach`] -> [`confine`]: no new privileges, then Landlock (landlock(7)).
//!
//! A module that opens a file after the start names it in the `reach` of its `Config`: otherwise opening it fails with EACCES. Landlock
//! binds the calling thread and those that it starts from then on, so that this comes before all other threads.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

/// The rights that are asked for; kernels that know fewer are asked for those.
const ABI_WANTED: ABI = ABI::V7;

/// What the system itself reads for this process, wherever it runs: names of hosts and the libraries that look them up, trusted
/// certificates, time zones, and what the kernel tells of itself. `/etc` as a whole, since what lies there is replaced by rename.
const SYSTEM: &[&str] = &[
    "/etc",
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/zoneinfo",
    "/proc",
    "/sys",
    "/dev/null",
    "/dev/urandom",
    // For the names in a panic's backtrace.
    "/proc/self/exe",
];

/// What the operator decides about this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Whether it gives up what it does not need.
    pub sandbox: Sandbox,
}

/// Whether this process gives up what it does not need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// As far as the kernel can.
    #[default]
    Auto,
    /// No.
    Off,
}

/// Files and folders that are used after the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    read: BTreeSet<PathBuf>,
    write: BTreeSet<PathBuf>,
}

impl Reach {
    /// `folder` and all below it are read.
    pub fn read_below(&mut self, folder: &Path) {
        self.read.extend(existing(folder));
    }

    /// `file` is read, and what takes its place later: renewed certificates are renamed into it, or a link is turned to another one.
    pub fn read_file(&mut self, file: &Path) {
        self.read.extend(folders_of(file));
    }

    /// `folder` and all below it are read, made, written and removed. It is made if its parent is there.
    pub fn write_below(&mut self, folder: &Path) {
        // Where it cannot be made, whoever opens it says why.
        if let Err(err) = fs::create_dir(folder)
            && err.kind() != io::ErrorKind::AlreadyExists
        {
            tracing::debug!(folder = %folder.display(), error = %err, "a folder cannot be made");
        }
        self.write.insert(folder.into());
    }

    /// `file` is written, moved away by others and made again, or written aside and renamed.
    pub fn write_file(&mut self, file: &Path) {
        match fs::metadata(file) {
            // A device or a pipe: the folder it stands in is none of ours.
            Ok(found) if !found.is_file() => drop(self.write.insert(file.into())),
            _ => self.write.extend(folders_of(file)),
        }
    }

    /// Both.
    #[must_use]
    pub fn and(mut self, mut other: Self) -> Self {
        self.read.append(&mut other.read);
        self.write.append(&mut other.write);
        self
    }

    /// What the system reads for this process.
    fn system(&mut self) {
        self.read.extend(SYSTEM.iter().map(PathBuf::from));
        // Written by whoever gives this machine its addresses, often outside of `/etc`.
        self.read_file(Path::new("/etc/resolv.conf"));
        for named in ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os) {
            self.read.extend(std::env::split_paths(&named));
        }
    }
}

/// The folder that a file lies in, and the one that it lies in when links are followed.
fn folders_of(file: &Path) -> impl Iterator<Item = PathBuf> {
    let real = file.canonicalize().ok();
    let folders = [Some(file), real.as_deref()].map(|file| file.and_then(Path::parent).map(Path::to_path_buf));
    // A name without a folder lies in the current one.
    folders.into_iter().flatten().map(|folder| if folder.as_os_str().is_empty() { ".".into() } else { folder })
}

/// The folder, or the nearest one above it that is there yet.
fn existing(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|folder| folder.exists()).filter(|folder| *folder != Path::new("/")).map(Path::to_path_buf)
}

/// How far this process is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confined {
    /// By Landlock of this ABI.
    By(i32),
    /// Only its privileges cannot grow: the kernel has no Landlock, or has turned it off.
    PrivilegesOnly(&'static str),
}

/// Why a kernel that has Landlock does not confine this process.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Privileges can still grow.
    #[error("give up new privileges")]
    Privileges(#[source] io::Error),
    /// The kernel refuses the rules.
    #[error("restrict what can be opened")]
    Landlock(#[from] RulesetError),
}

/// Confines the calling thread, and all that it starts from now on, for good: files outside of `reach` cannot be opened, made or removed, no
/// program can be run, no TCP port bound, no other process signalled, and no privilege gained. What is open already stays open.
///
/// # Errors
/// See [`SandboxError`].
pub fn confine(mut reach: Reach) -> Result<Confined, SandboxError> {
    rustix::thread::set_no_new_privs(true).map_err(|err| SandboxError::Privileges(err.into()))?;
    reach.system();
    let write = AccessFs::from_all(ABI_WANTED)
        & !(AccessFs::Execute
            | AccessFs::MakeChar
            | AccessFs::MakeBlock
            | AccessFs::MakeSock
            | AccessFs::MakeFifo
            | AccessFs::MakeSym
            | AccessFs::IoctlDev);
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_WANTED))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::Signal)?
        .create()?;
    let rules = allow(rules, &reach.read, AccessFs::ReadFile | AccessFs::ReadDir)?;
    let rules = allow(rules, &reach.write, write)?;
    let status = rules.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::NotImplemented => {
            Confined::PrivilegesOnly("this kernel has no Landlock, or a filter of system calls keeps it away")
        }
        LandlockStatus::NotEnabled => Confined::PrivilegesOnly("Landlock is turned off (see lsm= of the kernel)"),
        LandlockStatus::Available { .. } if status.ruleset == RulesetStatus::NotEnforced => {
            Confined::PrivilegesOnly("this kernel's Landlock can do none of it")
        }
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            Confined::By(kernel_abi.unwrap_or(effective_abi as i32))
        }
    })
}

fn allow(
    mut rules: RulesetCreated,
    paths: &BTreeSet<PathBuf>,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    for path in paths {
        let rule: Vec<Result<PathBeneath<PathFd>, RulesetError>> = path_beneath_rules([path], access).collect();
        tracing::debug!(path = %path.display(), there = !rule.is_empty(), write = access.contains(AccessFs::WriteFile), "in reach");
        rules = rules.add_rules(rule)?;
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, net::TcpListener, os::unix::fs::symlink};

    use super::*;

    /// On a thread of its own, which alone is confined; nothing where this kernel cannot.
    fn confined(reach: Reach, then: impl FnOnce() + Send + 'static) {
        let run = move || match confine(reach).expect("no rule is refused") {
            Confined::By(abi) => {
                assert!(abi > 0);
                then();
            }
            Confined::PrivilegesOnly(_) => {}
        };
        std::thread::spawn(run).join().expect("as it should be");
    }

    fn is_denied<T>(tried: io::Result<T>) -> bool {
        matches!(tried, Err(err) if err.kind() == io::ErrorKind::PermissionDenied)
    }

    #[test]
    fn nothing_out_of_reach_is_opened() {
        let home = tempfile::tempdir().expect("a folder");
        let at = |name: &str| home.path().join(name);
        for folder in ["read", "write", "other"] {
            fs::create_dir(at(folder)).expect("made");
            fs::write(at(folder).join("file"), b"text").expect("written");
        }
        let open = File::open(at("other/file")).expect("before");
        let mut reach = Reach::default();
        reach.read_below(&at("read"));
        reach.write_below(&at("write"));
        reach.write_below(&at("made"));
        reach.write_below(&at("no/such/parent"));
        let home = home.path().to_path_buf();
        confined(reach, move || {
            let at = |name: &str| home.join(name);
            assert_eq!(fs::read(at("read/file")).expect("in reach"), b"text");
            assert!(is_denied(fs::write(at("read/file"), b"other")));
            assert!(is_denied(File::create(at("read/new"))));
            fs::write(at("write/new"), b"text").expect("in reach");
            fs::create_dir(at("write/folder")).expect("in reach");
            fs::rename(at("write/new"), at("write/folder/new")).expect("in reach");
            fs::rename(at("write/folder/new"), at("made/new")).expect("from one folder in reach to another");
            fs::remove_file(at("write/file")).expect("in reach");
            for denied in ["other/file", "other/new"] {
                assert!(is_denied(File::open(at(denied))) || !at(denied).exists(), "{denied}");
                assert!(is_denied(File::create(at(denied))), "{denied}");
            }
            assert!(is_denied(fs::remove_file(at("other/file"))));
            assert!(is_denied(std::process::Command::new("/bin/true").status()), "no program is run");
            assert!(is_denied(TcpListener::bind("127.0.0.1:0")), "no port is bound");
            assert_eq!(open.metadata().expect("open before").len(), 4);
            // What the resolver and monitoring read.
            fs::read("/etc/hosts").expect("in reach");
            fs::read("/proc/self/statm").expect("in reach");
            // And what is started from here.
            let denied = std::thread::spawn(move || is_denied(File::open(home.join("other/file"))));
            assert!(denied.join().expect("no panic"));
        });
    }

    #[test]
    fn a_file_that_is_replaced_stays_in_reach() {
        let home = tempfile::tempdir().expect("a folder");
        let at = |name: &str| home.path().join(name);
        for folder in ["live", "archive", "log"] {
            fs::create_dir(at(folder)).expect("made");
        }
        // As certbot has it.
        fs::write(at("archive/edge1.pem"), b"old").expect("written");
        fs::write(at("archive/edge2.pem"), b"new").expect("written");
        symlink("../archive/edge1.pem", at("live/edge.pem")).expect("linked");
        let mut reach = Reach::default();
        reach.read_file(&at("live/edge.pem"));
        reach.write_file(&at("log/access.log"));
        reach.write_file(Path::new("/dev/full"));
        assert!(!reach.write.contains(Path::new("/dev")), "a device's folder is not in reach");
        fs::remove_file(at("live/edge.pem")).expect("removed");
        symlink("../archive/edge2.pem", at("live/edge.pem")).expect("linked");
        let home = home.path().to_path_buf();
        confined(reach, move || {
            assert_eq!(fs::read(home.join("live/edge.pem")).expect("in reach"), b"new");
            for _ in 0..2 {
                drop(File::options().create(true).append(true).open(home.join("log/access.log")).expect("in reach"));
                fs::rename(home.join("log/access.log"), home.join("log/access.log.1")).expect("rotated");
            }
            drop(File::options().write(true).open("/dev/full").expect("in reach"));
            assert!(is_denied(File::options().write(true).open("/dev/zero")));
        });
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_awaited_below_the_nearest_that_is() {
        let home = tempfile::tempdir().expect("a folder");
        assert_eq!(existing(&home.path().join("a/b")).as_deref(), Some(home.path()));
        assert_eq!(existing(Path::new("/no-such-folder/a")), None, "not everything there is");
    }
}
