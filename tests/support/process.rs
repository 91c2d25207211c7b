//! The binary as its users run it: started, read, signalled, and killed when its value is dropped.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{TIME_LIMIT, wait_until};

/// The binary with `arguments`, without the environment of this process.
pub(crate) fn livebridge(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livebridge"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// Runs `command` to its end.
pub(crate) fn run(command: &mut Command) -> Finished {
    let Output { status, stdout, stderr } = command.output().unwrap();
    Finished {
        code: status.code(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// The output and exit code of a command.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The lines that a process prints, as they arrive.
#[derive(Clone, Debug, Default)]
pub(crate) struct CapturedLines(Arc<(Mutex<Vec<String>>, Condvar)>);

impl CapturedLines {
    fn follow(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let followed = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                followed.0.0.lock().unwrap().push(line);
                followed.0.1.notify_all();
            }
        });
        lines
    }

    /// The first result of `find` on the lines, once there is one.
    #[track_caller]
    pub(crate) fn wait_for<T>(&self, mut find: impl FnMut(&str) -> Option<T>) -> T {
        let until = Instant::now() + 3 * TIME_LIMIT;
        let mut lines = self.0.0.lock().unwrap();
        loop {
            if let Some(found) = lines.iter().find_map(|line| find(line)) {
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not in:\n{}", lines.join("\n"));
            lines = self.0.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// The first line with `text`, once there is one.
    #[track_caller]
    pub(crate) fn wait_for_text(&self, text: &str) -> String {
        self.wait_for(|line| line.contains(text).then(|| line.to_owned()))
    }

    /// All lines.
    pub(crate) fn text(&self) -> String {
        self.0.0.lock().unwrap().join("\n")
    }
}

/// A running process; it is killed when the value is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pub(crate) stdout: CapturedLines,
    pub(crate) stderr: CapturedLines,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = CapturedLines::follow(child.stdout.take().unwrap());
        let stderr = CapturedLines::follow(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// The address in the log line with `message`.
    #[track_caller]
    pub(crate) fn address(&self, message: &str) -> SocketAddr {
        self.stderr.wait_for(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let matches = line["message"] == message;
            matches.then(|| line["address"].as_str()?.parse().ok()).flatten()
        })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its exit, which must not be caused by a signal.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let lines = self.stderr.clone();
        let has_ended = || self.child.try_wait().unwrap().is_some();
        wait_until(3 * TIME_LIMIT, has_ended, || format!("still running:\n{}", lines.text()));
        let status = self.child.wait().unwrap();
        assert!(status.code().is_some(), "{status}:\n{}", lines.text());
        status.code()
    }

    /// Sends SIGTERM and expects exit code 0.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.wait(), Some(0), "{}", self.stderr.text());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
