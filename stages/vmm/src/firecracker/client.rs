//! Firecracker's process and its API: each call answered, or one error that says which call and why.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::console::Capture;
use crate::error::{VmmError, harmless};
use crate::firecracker::files::Home;
use crate::firecracker::http::{Answer, Connection, Failed};
use crate::firecracker::request::Request;
use crate::firecracker::version::Version;
use crate::firecracker::{API_SOCKET, FIRECRACKER};
use crate::machine::VmmExit;
use crate::running::Running;

/// Between the first two looks for the API's socket, and at most: a process that takes its time is looked at less often.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const PAUSE: Duration = Duration::from_millis(1);

/// How long a process that hung up may take to be gone.
const GONE: Duration = Duration::from_secs(1);

/// How much of a fault message is kept.
const MESSAGE: usize = 2 << 10;

/// Firecracker's process, with a guest in it or not yet.
pub(crate) struct Process {
    pub(crate) running: Running,
    pub(crate) home: Home,
    /// Read to its end for as long as the process runs.
    pub(crate) _metrics: Capture,
    /// What the process is to hold until it ends. The jailer closes it, so it is held here, too.
    pub(crate) _held: Vec<Arc<OwnedFd>>,
}

/// What every refusal of the API carries.
#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

#[derive(Deserialize)]
struct VersionBody {
    firecracker_version: String,
}

impl Process {
    /// Waits for the API's socket and connects to it.
    pub(crate) fn connect(
        &self,
        timeout: Duration,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Connection, VmmError> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Ok(socket) = self.home.at.open_stream(API_SOCKET) {
                return Ok(Connection::new(socket));
            }
            self.check(cancel)?;
            if begun.elapsed() >= timeout {
                return Err(VmmError::NotReady {
                    program: FIRECRACKER,
                    waited: timeout,
                    logs: self.running.logs(),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 5 / 4).min(PAUSE);
        }
    }

    /// Gives a file the short name by which requests name it.
    pub(crate) fn give(
        &self,
        name: &str,
        path: &std::path::Path,
        read_only: bool,
    ) -> Result<(), VmmError> {
        let pid = self.running.child.mark.pid;
        let given = self.home.give(pid, name, path, read_only);
        given.or_else(|error| {
            // A jail ends with its process, and that is the better thing to say.
            self.running.child.wait(GONE);
            self.check(&|| false)?;
            Err(error)
        })
    }

    pub(crate) fn version(
        &self,
        connection: &mut Connection,
        timeout: Duration,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Version, VmmError> {
        let call = Call {
            method: "GET",
            path: "/version",
            body: None,
        };
        let answer = self.exchange(connection, &call, timeout, cancel)?;
        serde_json::from_slice::<VersionBody>(&answer)
            .ok()
            .and_then(|body| Version::parse(&body.firecracker_version))
            .ok_or_else(|| self.wrong(&call, "its answer names no version".to_owned()))
    }

    pub(crate) fn put(
        &self,
        connection: &mut Connection,
        request: &Request,
        timeout: Duration,
        cancel: &dyn Fn() -> bool,
    ) -> Result<(), VmmError> {
        let call = Call::with_body("PUT", request);
        self.exchange(connection, &call, timeout, cancel).map(drop)
    }

    pub(crate) fn patch(
        &self,
        connection: &mut Connection,
        request: &Request,
        timeout: Duration,
        cancel: &dyn Fn() -> bool,
    ) -> Result<(), VmmError> {
        let call = Call::with_body("PATCH", request);
        self.exchange(connection, &call, timeout, cancel).map(drop)
    }

    /// The body of an answer that says yes.
    fn exchange(
        &self,
        connection: &mut Connection,
        call: &Call<'_>,
        timeout: Duration,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, VmmError> {
        let deadline = Instant::now() + timeout;
        let answer = connection.exchange(call.method, call.path, call.body, deadline, &mut || {
            self.check(cancel)
        });
        match answer {
            Ok(Answer {
                status: 200 | 204,
                body,
            }) => Ok(body),
            Ok(answer) => Err(self.refused(call, &answer)),
            Err(Failed::Check(error)) => Err(error),
            Err(Failed::Closed { partial }) => {
                // As a rule the process has died of it, and that is the better thing to say.
                self.running.child.wait(GONE);
                self.check(cancel)?;
                Err(self.wrong(call, with(partial, "it hung up")))
            }
            Err(Failed::Deadline { partial }) => {
                let silent = format!("there was no answer within {timeout:?}");
                Err(self.wrong(call, with(partial, &silent)))
            }
            Err(Failed::Malformed(why)) => Err(self.wrong(call, why)),
            Err(Failed::Io(error)) => Err(self.wrong(call, error.to_string())),
        }
    }

    /// Ends the process, as nothing can come of it any more, and gives `error` its last words: those of a process that still
    /// runs may not all have been read.
    pub(crate) fn end_of(&self, mut error: VmmError) -> VmmError {
        self.running.child.kill();
        if let Some(logs) = error.logs_mut() {
            *logs = *self.running.logs();
        }
        error
    }

    pub(crate) fn check(&self, cancel: &dyn Fn() -> bool) -> Result<(), VmmError> {
        self.running.check(cancel, &|_| ())
    }

    fn refused(&self, call: &Call<'_>, answer: &Answer) -> VmmError {
        let message = match serde_json::from_slice::<Fault>(&answer.body) {
            Ok(fault) => fault.fault_message.into_bytes(),
            Err(_) => answer.body.clone(),
        };
        VmmError::Refused {
            program: FIRECRACKER,
            call: call.to_string(),
            status: answer.status,
            message: harmless(&message[..message.len().min(MESSAGE)]),
            logs: self.running.logs(),
        }
    }

    fn wrong(&self, call: &Call<'_>, why: String) -> VmmError {
        VmmError::Api {
            program: FIRECRACKER,
            call: call.to_string(),
            why,
            logs: self.running.logs(),
        }
    }

    pub(crate) fn wait_exit(&self, timeout: Duration) -> Option<VmmExit> {
        self.running.wait_exit(timeout)
    }
}

fn with(partial: bool, what: &str) -> String {
    match partial {
        true => format!("{what}, after half an answer"),
        false => what.to_owned(),
    }
}

struct Call<'a> {
    method: &'static str,
    path: &'a str,
    body: Option<&'a str>,
}

impl<'a> Call<'a> {
    fn with_body(method: &'static str, request: &'a Request) -> Self {
        Self {
            method,
            path: &request.path,
            body: Some(&request.body),
        }
    }
}

impl std::fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}
