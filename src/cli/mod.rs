//! The command line: one file per command.

mod check_config;
mod demo;
mod drain;
mod fill;
mod keys;
mod manifest;
mod operator;
mod plan;
mod purge;
mod serve;
mod sign;
mod status;
mod why;

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
    /// Make keys, for signed URLs and for manifests
    Keys(keys::Arguments),
    /// Make, sign, check and publish the lists of what appliances are to hold
    Manifest(manifest::Arguments),
    /// Show how an appliance is: state and reasons, load, cache, fill, reports
    Status(status::Arguments),
    /// Have viewers sent elsewhere, while those that come are served
    Drain(drain::Arguments),
    /// Take assets out of service, at once and for ever
    Purge(purge::Arguments),
    /// Show what an appliance would keep, fetch and evict for a manifest
    Plan(plan::Arguments),
    /// Show how far the fill by manifest is, or fill now
    Fill(fill::Arguments),
    /// Tell why an asset is here or not
    Why(why::Arguments),
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
        Command::Manifest(arguments) => manifest::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Drain(arguments) => drain::run(&arguments),
        Command::Purge(arguments) => purge::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Fill(arguments) => fill::run(&arguments),
        Command::Why(arguments) => why::run(&arguments),
    }
}
