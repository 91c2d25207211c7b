//! `livebridge tencent remove`.

use clap::Args;

use super::setup::shown;
use super::{Account, Managed};
use crate::cli::CliError;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    account: Account,
    #[command(flatten)]
    managed: Managed,
    /// Only the rules of this push domain; may be given several times. The template is deleted when
    /// no rule names it.
    #[arg(long, value_name = "DOMAIN")]
    domain: Vec<String>,
    /// Delete them. Without it, the command prints what it would delete.
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let client = options.account.connect()?;
    let templates = client.templates()?;
    let Some(template) = options.managed.find(&templates) else {
        print_out!(
            "nothing to do: livebridge created no template {} in this account",
            options.managed.name
        );
        return Ok(());
    };
    let id = template.template_id;
    let (selected, left): (Vec<_>, Vec<_>) =
        client.rules()?.into_iter().filter(|rule| rule.template_id == id).partition(|rule| {
            options.domain.is_empty() || options.domain.contains(&rule.domain_name)
        });
    for rule in &selected {
        print_out!("delete the rule of {}", shown(&rule.domain_name, &rule.app_name));
    }
    if left.is_empty() {
        print_out!("delete the template {id} ({})", template.template_name);
    } else {
        print_out!("keep the template {id}: {} other rules name it", left.len());
    }
    if !options.yes {
        print_out!("Nothing was deleted. Run it again with --yes to delete.");
        return Ok(());
    }
    for rule in &selected {
        client.delete_rule(rule)?;
    }
    if left.is_empty() {
        client.delete_template(id)?;
    }
    print_out!(
        "Done. Tencent Cloud still sends callbacks for 10 minutes, and retries for 16 more: keep \
         livebridge running and the callback key in its configuration until then."
    );
    Ok(())
}
