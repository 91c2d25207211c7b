//! `livebridge ready`: asks a running instance whether it accepts callbacks.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::config::{ConfigLayers, listen_address};
use clap::Args;

use super::{CliError, ConfigFile};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// The address at which it serves /readyz; without it, admin.listen of the configuration.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

/// The longest wait for the answer. Health checks of containers have longer limits of their own.
const WAIT: Duration = Duration::from_secs(3);

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let address = match options.admin {
        Some(address) => address,
        None => configured(options)?,
    };
    match ask(address) {
        Ok((200, _)) => {
            print_out!("ready");
            Ok(())
        }
        Ok((_, reason)) => {
            print_out!("{}", reason.trim());
            Err(CliError::Found)
        }
        Err(cause) => {
            print_out!("no answer from {address}: {cause}");
            Err(CliError::Found)
        }
    }
}

/// Without reading the whole configuration: the user may not be allowed to read the keys.
fn configured(options: &Options) -> Result<SocketAddr, CliError> {
    let layers = ConfigLayers::read(options.config.config.as_deref())?;
    let listen = layers.text("admin", "listen").and_then(|text| listen_address(&text));
    let address = listen.ok_or_else(|| {
        CliError::Usage("admin.listen is not an address such as 127.0.0.1:9464".into())
    })?;
    Ok(reachable(address))
}

/// The address to connect to for a listener at `address`, which may listen on all interfaces.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

/// The status and the body of `/readyz`.
fn ask(address: SocketAddr) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
    stream.set_read_timeout(Some(WAIT))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    // livebridge never answers more than this.
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    let parts = answer
        .split_once("\r\n\r\n")
        .and_then(|(head, body)| Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned())));
    parts.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the answer is not that of livebridge")
    })
}
