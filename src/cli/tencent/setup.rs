//! `livebridge tencent setup`.

use std::collections::BTreeSet;

use crate::callback::CallbackKey;
use crate::config::Config;
use crate::tencent::{
    CallbackRule, CallbackTemplate, Client, Reason, TemplateKey, TemplateUrl, UrlKind,
};
use clap::Args;

use super::keys_file::{self, KeysFile, NewKey};
use super::status::{CallbackUrl, is_below};
use super::{Account, MARK, Managed};
use crate::cli::{CliError, ConfigFile};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    account: Account,
    #[command(flatten)]
    managed: Managed,
    /// The URL at which Tencent Cloud reaches livebridge, such as
    /// `https://events.example.com/callback`: its path is http.path or below. The name of each kind
    /// of event is appended as a further segment.
    #[arg(long, value_name = "URL")]
    url: String,
    /// A push domain; may be given several times.
    #[arg(long, value_name = "DOMAIN", required = true)]
    domain: Vec<String>,
    /// Only this app of the domains (the first segment of the push path); without it, all of them.
    #[arg(long, value_name = "APP", default_value = "", hide_default_value = true)]
    app: String,
    /// The kinds of events that get a URL; the URLs of the others are removed.
    #[arg(long, value_name = "TYPE,…", value_delimiter = ',', value_parser = parse_kind, default_value = "push,interrupt,record,record-status,record-exception,screenshot,porn-detection,audio-moderation,push-exception")]
    events: Vec<UrlKind>,
    /// The name of the configured callback key to use; without it, the one in use stays, or else
    /// the first that Tencent Cloud accepts is used.
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Accept a path outside http.path, because a proxy rewrites it.
    #[arg(long)]
    any_path: bool,
    /// Also change what another program or person created: a template of this name, and rules of
    /// these domains and this app that name other templates; and create a rule although another one
    /// of the domain, with or without an app, names another template.
    #[arg(long)]
    take_over: bool,
    /// Make the changes. Without it, the command prints what it would change.
    #[arg(long)]
    yes: bool,
}

fn parse_kind(text: &str) -> Result<UrlKind, String> {
    UrlKind::parse(text.trim()).ok_or_else(|| {
        let names: Vec<&str> = UrlKind::ALL.iter().map(|kind| kind.name()).collect();
        format!("a template has no URL for it; it has URLs for {}", names.join(", "))
    })
}

/// The changes, in the order in which they are made.
#[derive(Debug)]
enum Step {
    AddKey(NewKey),
    CreateTemplate,
    ModifyTemplate(Vec<String>),
    /// Its template is known only after the first steps, as is that of `ReplaceRule`.
    CreateRule(String),
    ReplaceRule(CallbackRule),
}

pub(super) fn run(options: &Options) -> Result<(), CliError> {
    let config = Config::load_before_first_key(options.config.config.as_deref())?;
    let location = check_url(options, &config)?;
    let client = options.account.connect()?;
    let domains: BTreeSet<String> = options.domain.iter().cloned().collect();
    check_domains(&client, &domains)?;
    let (templates, all_rules) = (client.templates()?, client.rules()?);
    let mut steps = Vec::new();
    let (mut template, existing) = template(options, &templates)?;
    let key = key(options, &config, &template, &mut steps)?;
    let unchanged = template.clone();
    MARK.clone_into(&mut template.description);
    template.callback_key = TemplateKey::new(key.reveal());
    for kind in UrlKind::ALL {
        let wanted = options.events.contains(&kind);
        template.set_url(kind, &if wanted { location.of(kind) } else { String::new() });
    }
    if existing {
        let changes = differences(&unchanged, &template, key.name());
        if !changes.is_empty() {
            check_other_rules(options, &domains, &unchanged, &all_rules)?;
            steps.push(Step::ModifyTemplate(changes));
        }
    } else {
        steps.push(Step::CreateTemplate);
    }
    rules(options, &domains, &all_rules, &template, &mut steps)?;
    if steps.is_empty() {
        print_out!("nothing to do: template {} is as wanted", template.template_id);
        return Ok(());
    }
    for step in &steps {
        print_out!("{}", describe(step, options, &template, key.name()));
    }
    if !options.yes {
        print_out!("Nothing was changed. Run it again with --yes to change it.");
        return Ok(());
    }
    apply(options, &config, &client, template, steps)
}

/// Checks the URL against the configuration of the intake.
fn check_url(options: &Options, config: &Config) -> Result<CallbackUrl, CliError> {
    let location = CallbackUrl::parse(&options.url).ok_or_else(|| {
        CliError::Usage(format!(
            "--url {:?} is not a URL such as https://events.example.com/callback",
            options.url
        ))
    })?;
    if !options.any_path && !is_below(location.path(), &config.http.path) {
        return Err(CliError::Usage(
            "the path of --url is neither http.path nor below it: every callback would get 404; \
             correct one of the two, or give --any-path if a proxy rewrites paths"
                .to_owned(),
        ));
    }
    if location.is_plain() && config.access.tls.is_some() {
        return Err(CliError::Usage(
            "--url is http, and the intake uses TLS in this configuration: use https".to_owned(),
        ));
    }
    Ok(location)
}

fn check_domains(client: &Client, wanted: &BTreeSet<String>) -> Result<(), CliError> {
    let known = client.push_domains()?;
    for domain in wanted {
        match known.iter().find(|one| one.name == *domain) {
            Some(found) if !found.is_enabled() => print_out!("note: {domain} is disabled"),
            Some(_) => {}
            None => {
                let names: Vec<&str> = known.iter().map(|one| one.name.as_str()).collect();
                return Err(CliError::Usage(format!(
                    "the account has no push domain {domain}; it has {}",
                    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
                )));
            }
        }
    }
    Ok(())
}

/// The template to change, and whether it exists.
fn template(
    options: &Options,
    templates: &[CallbackTemplate],
) -> Result<(CallbackTemplate, bool), CliError> {
    if let Some(found) = options.managed.find(templates) {
        return Ok((found.clone(), true));
    }
    let name = &options.managed.name;
    match templates.iter().find(|one| one.template_name == *name) {
        None => Ok((CallbackTemplate::new(name, MARK, TemplateKey::default()), false)),
        Some(found) if options.take_over => Ok((found.clone(), true)),
        Some(found) => Err(CliError::Usage(format!(
            "template {} has the name {name}, and livebridge did not create it: choose another with \
             --template, or give --take-over to change it",
            found.template_id
        ))),
    }
}

/// The key for the template: that of `--key`, the one it has, a configured one, or a new one.
fn key(
    options: &Options,
    config: &Config,
    template: &CallbackTemplate,
    steps: &mut Vec<Step>,
) -> Result<CallbackKey, CliError> {
    let keys = &config.verifier.keys;
    if let Some(name) = &options.key {
        let found = keys.iter().find(|key| key.name() == name).cloned();
        let names: Vec<&str> = keys.iter().map(CallbackKey::name).collect();
        let key = found.ok_or_else(|| {
            let names = names.join(", ");
            CliError::Usage(format!(
                "no callback key is called {name}; the configured ones are {names}"
            ))
        })?;
        if !keys_file::is_acceptable(&key) {
            let text = "is not 1 to 32 letters and digits, which Tencent Cloud requires";
            return Err(CliError::Usage(format!("the callback key {name} {text}")));
        }
        return Ok(key);
    }
    let in_use = CallbackKey::new(template.callback_key.text());
    let kept = in_use.and_then(|used| keys.iter().find(|key| key.has_same_secret(&used)));
    let usable = keys.iter().find(|key| keys_file::is_acceptable(key) && !key.is_example());
    if let Some(key) = kept.or(usable) {
        return Ok(key.clone());
    }
    KeysFile::of(config)?;
    let new = NewKey::random(keys_file::new_name());
    let key = new.key().ok_or(CliError::Found)?;
    steps.push(Step::AddKey(new));
    Ok(key)
}

/// What differs, without the URLs and keys themselves.
fn differences(old: &CallbackTemplate, new: &CallbackTemplate, key: &str) -> Vec<String> {
    let mut changes = Vec::new();
    if old.description != new.description {
        changes.push("mark it as managed by livebridge".to_owned());
    }
    if old.callback_key != new.callback_key {
        changes.push(format!("set the callback key {key}"));
    }
    for kind in UrlKind::ALL {
        let (old, new) = (old.url(kind), new.url(kind));
        match (&old, &new) {
            // Also when Tencent Cloud does not report it: setting it again does no harm.
            (_, TemplateUrl::Set(_)) if old != new => {
                changes.push(format!("set the URL of {kind}"));
            }
            (TemplateUrl::Set(_), TemplateUrl::Unset) => {
                changes.push(format!("remove the URL of {kind}"));
            }
            _ => {}
        }
    }
    changes
}

/// Prints which other rules a change of `template` concerns. If another program or person created
/// it, those of other domains stop the command.
fn check_other_rules(
    options: &Options,
    domains: &BTreeSet<String>,
    template: &CallbackTemplate,
    rules: &[CallbackRule],
) -> Result<(), CliError> {
    let is_other =
        |rule: &&CallbackRule| !domains.contains(&rule.domain_name) || rule.app_name != options.app;
    let named = rules.iter().filter(|rule| rule.template_id == template.template_id);
    for rule in named.filter(is_other) {
        let other = shown(&rule.domain_name, &rule.app_name);
        if !options.managed.created(template) && !domains.contains(&rule.domain_name) {
            return Err(CliError::Usage(format!(
                "the rule of {other} names template {} too, so that its callbacks would come here \
                 as well: choose another name with --template, or give --domain {} too",
                template.template_id, rule.domain_name
            )));
        }
        print_out!("note: this changes the callbacks of {other} too: its rule names the template");
    }
    Ok(())
}

/// Plans the rules: those that replace another one last, because only they can leave a domain
/// without a rule.
fn rules(
    options: &Options,
    domains: &BTreeSet<String>,
    rules: &[CallbackRule],
    template: &CallbackTemplate,
    steps: &mut Vec<Step>,
) -> Result<(), CliError> {
    let mut replaced = Vec::new();
    for domain in domains {
        let of_domain = || rules.iter().filter(|rule| rule.domain_name == *domain);
        let found = of_domain().find(|rule| rule.app_name == options.app);
        let is_bound = found.is_some_and(|rule| rule.template_id == template.template_id);
        // The rule of an app takes precedence over the one of the domain.
        for other in of_domain().filter(|rule| rule.template_id != template.template_id) {
            let (wanted, theirs) = (shown(domain, &options.app), shown(domain, &other.app_name));
            let id = other.template_id;
            let what = if options.app.is_empty() && !other.app_name.is_empty() {
                format!("the callbacks of {theirs} go elsewhere: its own rule names template {id}")
            } else if other.app_name.is_empty() && !options.app.is_empty() && !is_bound {
                format!("the callbacks of {wanted} follow the rule of {theirs}, for template {id}")
            } else {
                continue;
            };
            if !is_bound && !options.take_over {
                return Err(CliError::Usage(format!(
                    "{what}, which livebridge does not manage; give --take-over to create the rule \
                     of {wanted} nevertheless"
                )));
            }
            print_out!("note: {what}");
        }
        match found {
            Some(_) if is_bound => {}
            Some(rule) if options.take_over => replaced.push(Step::ReplaceRule(rule.clone())),
            Some(rule) => {
                return Err(CliError::Usage(format!(
                    "the rule of {} names template {}, which livebridge does not manage: its \
                     callbacks go elsewhere; give --take-over to replace the rule",
                    shown(domain, &options.app),
                    rule.template_id
                )));
            }
            None => steps.push(Step::CreateRule(domain.clone())),
        }
    }
    steps.extend(replaced);
    Ok(())
}

/// A domain, or an app of one.
pub(super) fn shown(domain: &str, app: &str) -> String {
    if app.is_empty() { domain.to_owned() } else { format!("{domain}/{app}") }
}

fn describe(step: &Step, options: &Options, template: &CallbackTemplate, key: &str) -> String {
    match step {
        Step::AddKey(new) => format!("add the callback key {} to callback.keys_file", new.name),
        Step::CreateTemplate => {
            let kinds: Vec<&str> = options.events.iter().map(|kind| kind.name()).collect();
            let name = &template.template_name;
            format!(
                "create the template {name} with the key {key} and URLs for {}",
                kinds.join(", ")
            )
        }
        Step::ModifyTemplate(changes) => {
            format!("change template {}: {}", template.template_id, changes.join(", "))
        }
        Step::CreateRule(domain) => {
            format!("create a rule of {} for the template", shown(domain, &options.app))
        }
        Step::ReplaceRule(rule) => format!(
            "delete the rule of {}, which names template {}, and create it for the template",
            shown(&rule.domain_name, &rule.app_name),
            rule.template_id
        ),
    }
}

fn apply(
    options: &Options,
    config: &Config,
    client: &Client,
    mut template: CallbackTemplate,
    steps: Vec<Step>,
) -> Result<(), CliError> {
    for step in steps {
        match step {
            Step::AddKey(new) => KeysFile::of(config)?.add(&new)?,
            Step::CreateTemplate => template.template_id = client.create_template(&template)?,
            Step::ModifyTemplate(_) => client.modify_template(&template)?,
            Step::CreateRule(domain_name) => client.create_rule(&CallbackRule {
                domain_name,
                app_name: options.app.clone(),
                template_id: template.template_id,
            })?,
            Step::ReplaceRule(rule) => replace_rule(client, &rule, template.template_id)?,
        }
    }
    print_out!(
        "Done: template {}. It takes 5 to 10 minutes to take effect; `livebridge tencent status` \
         compares it with the configuration.",
        template.template_id
    );
    Ok(())
}

/// Deletes `old` and creates the same rule for `template_id`. If that fails, the old one is created
/// again: without any rule, no callback of the domain is sent.
fn replace_rule(client: &Client, old: &CallbackRule, template_id: i64) -> Result<(), CliError> {
    let deleted = client.delete_rule(old);
    if let Err(error) = &deleted
        && error.reason().is_some_and(|reason| reason != Reason::Internal)
    {
        // It was not deleted. Without such an answer, it may have been.
        return deleted.map_err(CliError::from);
    }
    let new = CallbackRule { template_id, ..old.clone() };
    let Err(error) = deleted.and_then(|()| client.create_rule(&new)) else { return Ok(()) };
    let (place, id) = (shown(&old.domain_name, &old.app_name), old.template_id);
    match client.create_rule(old) {
        Ok(()) => {
            print_err!("the rule of {place}, for template {id}, was deleted and created again");
        }
        Err(again) if again.reason() == Some(Reason::AlreadyExists) => {
            print_err!("{place} has a rule; run this again, which sees whether it is the new one");
        }
        Err(again) => print_err!(
            "the rule of {place}, for template {id}, was deleted and could not be created again \
             ({again}): none of its callbacks is sent until you create a rule, in the console or by \
             running this again"
        ),
    }
    Err(error.into())
}
