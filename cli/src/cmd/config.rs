//! `kiln config`: names for servers.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use crate::{
    cmd::{Cx, Result},
    context::{self, Context, File},
    exit::ExitStatus,
    failure::Failure,
    table::Table,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the contexts
    List,
    /// Use a context from now on
    Use { name: String },
    /// Make or change a context: --server, --token-file, --ca-file and --ca-fingerprint are kept in it
    Set { name: String },
    /// Show what is in effect
    Show,
}

impl Args {
    pub(crate) fn run(self, cx: &Cx<'_>) -> Result {
        let mut file = File::load()?;
        match self.command {
            Command::List => list(cx, &file)?,
            Command::Show => show(cx)?,
            Command::Use { name } => {
                file.chosen(Some(&name))?;
                cx.printer.note(format!("context {name} is in use"));
                file.current = Some(name);
                file.save()?;
            }
            Command::Set { name } => {
                set(cx, &mut file, &name)?;
                file.save()?;
                cx.printer.note(format!("context {name} is set"));
            }
        }
        Ok(ExitStatus::Succeeded)
    }
}

fn set(cx: &Cx<'_>, file: &mut File, name: &str) -> Result<()> {
    let old = file.contexts.get(name).cloned();
    let server = cx.global.server.clone().or_else(|| old.as_ref().map(|old| old.server.clone()));
    let Some(server) = server else {
        return Err(Failure::usage("a context needs a server")
            .hint(format!("kiln config set {name} --server http://host:7420 --token-file FILE")));
    };
    context::check_name(name)?;
    context::check_server(&server)?;
    let old = old.unwrap_or_default();
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).map_err(|error| Failure::file("find", path, &error))
    };
    let token_file = cx.global.token_file.as_ref().map(absolute).transpose()?.or(old.token_file);
    let ca_file = cx.global.ca_file.as_ref().map(absolute).transpose()?.or(old.ca_file);
    let ca_fingerprint = cx.global.ca_fingerprint.as_deref();
    let ca_fingerprint = ca_fingerprint.map(context::fingerprint).transpose()?;
    let ca_fingerprint = ca_fingerprint.map(|digest| digest.to_string()).or(old.ca_fingerprint);
    let context = Context { server, token_file, ca_file, ca_fingerprint };
    file.contexts.insert(name.to_owned(), context);
    if file.current.is_none() {
        file.current = Some(name.to_owned());
    }
    Ok(())
}

fn list(cx: &Cx<'_>, file: &File) -> Result<()> {
    let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    if cx.printer.is_json() {
        let context = |(name, context): (&String, &Context)| {
            let value = json!({
                "server": context.server,
                "token_file": shown(&context.token_file),
                "ca_file": shown(&context.ca_file),
            });
            (name.clone(), value)
        };
        let contexts: Map<String, Value> = file.contexts.iter().map(context).collect();
        return Ok(cx.printer.json(&json!({ "current": file.current, "contexts": contexts }))?);
    }
    if file.contexts.is_empty() {
        cx.printer.note("no contexts: `kiln config set NAME --server URL` makes one");
        return Ok(());
    }
    let mut table = Table::new(&["CONTEXT", "IN USE", "SERVER", "TOKEN FILE"]);
    for (name, context) in &file.contexts {
        let used = if file.current.as_ref() == Some(name) { "yes" } else { "" };
        let token = shown(&context.token_file).unwrap_or_default();
        table.row([
            name.as_str().into(),
            used.into(),
            context.server.as_str().into(),
            token.into(),
        ]);
    }
    Ok(cx.printer.table(&table)?)
}

fn show(cx: &Cx<'_>) -> Result<()> {
    let options = context::options(&cx.global)?;
    let path = context::path().map(|path| path.display().to_string()).unwrap_or_default();
    let token = options.token.is_some();
    if cx.printer.is_json() {
        let value = json!({ "file": path, "server": options.server, "token": token });
        return Ok(cx.printer.json(&value)?);
    }
    cx.printer.line(format!("file    {path}"))?;
    cx.printer.line(format!("server  {}", options.server))?;
    Ok(cx.printer.line(format!("token   {}", if token { "yes" } else { "none" }))?)
}
