//! The command line: one file per command.

mod check_config;
mod demo;
mod keys;
mod serve;
mod sign;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The edge video cache that a video service puts on boxes inside ISPs' networks.
#[derive(Debug, Parser)]
#[command(name = "oca", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve viewers, as a configuration says
    Serve(serve::Arguments),
    /// Check a configuration and show every fault of it
    CheckConfig(check_config::Arguments),
    /// Play real video through an appliance on this machine; Ctrl-C ends it and leaves nothing behind
    Demo(demo::Arguments),
    /// Sign a URL, to try an appliance that asks for signatures
    Sign(Box<sign::Arguments>),
    /// Make keys for signed URLs
    Keys(keys::Arguments),
}

/// Exit code for a configuration with faults, and for a wrong command line.
const FAULTY: u8 = 2;

/// Carries out the command line; gives the process's exit code.
///
/// # Errors
/// What went wrong, as a chain of causes.
pub fn run() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::CheckConfig(arguments) => check_config::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Sign(arguments) => sign::run(&arguments),
        Command::Keys(arguments) => keys::run(&arguments),
    }
}
