//! nginx as it is set up best: one worker on the server's core.

use std::{
    fmt, fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Fallible, cores};

/// One way to set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// `sendfile`; the next two only matter with it.
    pub(crate) sendfile: bool,
    /// `tcp_nopush`.
    pub(crate) nopush: bool,
    /// `sendfile_max_chunk`.
    pub(crate) chunk: &'static str,
    /// `listen ... sndbuf=`.
    pub(crate) sndbuf: Option<&'static str>,
    /// `aio threads`.
    pub(crate) threads: bool,
    /// `access_log`.
    pub(crate) log: bool,
    /// Further directives for all servers, as they stand in the configuration.
    pub(crate) more: &'static str,
}

impl Tuning {
    /// As its guides have it for large files.
    pub(crate) const PLAIN: Self =
        Self { sendfile: true, nopush: true, chunk: "512k", sndbuf: None, threads: false, log: false, more: "" };

    /// What is tried for everything that is in memory.
    pub(crate) fn hot() -> Vec<Self> {
        let mut all = Vec::new();
        for nopush in [true, false] {
            for chunk in ["512k", "2m"] {
                for sndbuf in [None, Some("256k")] {
                    all.push(Self { nopush, chunk, sndbuf, ..Self::PLAIN });
                }
            }
        }
        all
    }

    /// What is tried for what is not.
    pub(crate) fn cold() -> Vec<Self> {
        let with = |nopush, chunk| Self { nopush, chunk, threads: true, ..Self::PLAIN };
        // With descriptors that are shared, it turns O_DIRECT off for one request's tail while another reads: "Invalid argument".
        let direct = "directio 4k; open_file_cache off; output_buffers 2 1m;";
        vec![
            with(true, "512k"),
            with(true, "2m"),
            with(false, "512k"),
            with(false, "2m"),
            Self { sendfile: false, threads: true, more: "output_buffers 2 512k;", ..Self::PLAIN },
            Self { sendfile: false, threads: true, more: direct, ..Self::PLAIN },
        ]
    }

    /// What is tried inside of TLS, where bytes are read and encrypted by the worker.
    pub(crate) fn secure() -> Vec<Self> {
        [
            "ssl_buffer_size 16k; output_buffers 2 32k;",
            "ssl_buffer_size 16k; output_buffers 2 128k;",
            "ssl_buffer_size 16k; output_buffers 1 512k;",
            "ssl_buffer_size 64k; output_buffers 2 128k;",
            "ssl_buffer_size 64k; output_buffers 1 512k;",
            "ssl_buffer_size 256k; output_buffers 1 512k;",
        ]
        .map(|more| Self { sendfile: false, more, ..Self::PLAIN })
        .to_vec()
    }

    /// What is tried for a cache that fills.
    pub(crate) fn filling() -> Vec<Self> {
        vec![
            Self::PLAIN,
            Self { more: "proxy_buffers 16 64k; proxy_busy_buffers_size 512k;", ..Self::PLAIN },
            Self { threads: true, more: "aio_write on;", ..Self::PLAIN },
            Self {
                threads: true,
                more: "aio_write on; proxy_buffers 16 64k; proxy_busy_buffers_size 512k;",
                ..Self::PLAIN
            },
        ]
    }
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.sendfile {
            parts.push(format!("nopush {}, chunk {}", if self.nopush { "on" } else { "off" }, self.chunk));
        }
        parts.extend(self.sndbuf.map(|sndbuf| format!("sndbuf {sndbuf}")));
        parts.extend(self.threads.then(|| "aio threads".to_owned()));
        parts.extend(self.more.split_terminator(';').map(|directive| directive.trim().to_owned()));
        parts.extend(self.log.then(|| "log on".to_owned()));
        f.write_str(&parts.join(", "))
    }
}

/// What a workload needs of it beside the tuning; `HOME` stands for its folder.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Role<'a> {
    /// Where it listens, if not on the loopback.
    pub(crate) address: Option<&'a str>,
    /// Parameters of `listen`.
    pub(crate) listen: &'a str,
    /// Directives of the one server.
    pub(crate) server: &'a str,
    /// Directives around it.
    pub(crate) http: &'a str,
    /// Whether it is not what a core of its own is measured for, as an origin: it then runs wherever there is time.
    pub(crate) is_origin: bool,
}

/// A running nginx; ended when dropped.
pub(crate) struct Nginx {
    child: Child,
    pub(crate) http: SocketAddr,
}

impl Nginx {
    /// Whether it is installed.
    pub(crate) fn is_there() -> bool {
        binary().is_some()
    }

    /// Serves the files below `root`, or what its role says.
    pub(crate) fn start(home: &Path, root: &Path, tuning: Tuning, role: &Role<'_>) -> Fallible<Self> {
        // It cannot tell which port it was given: one that was free a moment ago.
        let http = TcpListener::bind((role.address.unwrap_or("127.0.0.1"), 0))?.local_addr()?;
        let home = home.join(format!("nginx-{}", http.port()));
        fs::create_dir_all(&home)?;
        let config = format!(
            "daemon off; pid {home}/pid; error_log {home}/log; worker_processes 1; worker_rlimit_nofile 16384; {user}\n\
             events {{ worker_connections 8192; }}\n\
             http {{ {log} sendfile {sendfile}; tcp_nopush {nopush}; sendfile_max_chunk {chunk}; {aio} keepalive_requests 1000000000;\n\
             keepalive_timeout 300s; default_type video/mp4;\n\
             client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u;\n\
             scgi_temp_path {home}/s; {cache} {more} {http}\n\
             server {{ listen {address} backlog=4096{sndbuf} {listen}; root {root};\n{server}\n}} }}\n",
            home = home.display(),
            root = root.display(),
            log = if tuning.log {
                format!("access_log {}/access;", home.display())
            } else {
                "access_log off;".to_owned()
            },
            nopush = if tuning.nopush { "on" } else { "off" },
            chunk = tuning.chunk,
            aio = if tuning.threads { "aio threads;" } else { "" },
            sndbuf = tuning.sndbuf.map(|size| format!(" sndbuf={size}")).unwrap_or_default(),
            sendfile = if tuning.sendfile { "on" } else { "off" },
            cache = if tuning.more.contains("open_file_cache") {
                ""
            } else {
                "open_file_cache max=20000 inactive=1h; open_file_cache_valid 1h;"
            },
            more = tuning.more,
            http = role.http.replace("HOME", &home.display().to_string()),
            address = http,
            listen = role.listen,
            server = role.server,
            // Its workers give up root where it is begun as root, and could not read the scratch folder.
            user = if rustix::process::geteuid().is_root() { "user root;" } else { "" },
        );
        fs::write(home.join("nginx.conf"), config)?;
        let mut command = Command::new(binary().ok_or("nginx is not installed")?);
        command.arg("-c").arg(home.join("nginx.conf")).arg("-p").arg(&home);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = if role.is_origin { command.spawn()? } else { cores::spawn_server(&mut command)? };
        let mut nginx = Self { child, http };
        let begun = Instant::now();
        while TcpStream::connect(http).is_err() {
            if nginx.child.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(10) {
                return Err(format!("nginx: {}", fs::read_to_string(home.join("log")).unwrap_or_default()).into());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(nginx)
    }

    /// Its processes.
    pub(crate) fn ids(&self) -> Vec<u32> {
        cores::family(self.child.id())
    }
}

/// Where it is: Debian has it where only root's PATH leads.
fn binary() -> Option<&'static str> {
    ["nginx", "/usr/sbin/nginx"].into_iter().find(|path| {
        let run = Command::new(path).arg("-v").stderr(Stdio::null()).status();
        run.is_ok_and(|status| status.success())
    })
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM, so that its workers end with it.
        if let Err(err) = kill_process(Pid::from_child(&self.child), Signal::TERM) {
            eprintln!("nginx has ended already: {err}");
        }
        drop(self.child.wait());
    }
}
