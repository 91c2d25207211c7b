//! Access rules of a broker with an authorizer, which rdkafka cannot create.

use std::process::Command;

use super::Unavailable;
use super::{consumer, tools};

const SCRIPT: &str = r#"
import sys
from confluent_kafka.admin import (AclBinding, AclBindingFilter, AclOperation, AclPermissionType,
                                   AdminClient, ResourcePatternType, ResourceType)
action, bootstrap, kind, name, user, operation, permission = sys.argv[1:]
rule = (ResourceType[kind], name, ResourcePatternType.LITERAL, "User:" + user, "*",
        AclOperation[operation], AclPermissionType[permission])
admin = AdminClient({"bootstrap.servers": bootstrap})
done = (admin.create_acls([AclBinding(*rule)]) if action == "add"
        else admin.delete_acls([AclBindingFilter(*rule)]))
for future in done.values():
    future.result(30)
"#;

/// One access control entry.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// `TOPIC`, `TRANSACTIONAL_ID`, `BROKER` (the cluster), `GROUP`.
    pub kind: &'a str,
    /// The resource's name, or `*`.
    pub name: &'a str,
    pub user: &'a str,
    /// `ALL`, `WRITE` and so on.
    pub operation: &'a str,
    /// `ALLOW` or `DENY`.
    pub permission: &'a str,
}

impl Rule<'_> {
    pub fn add(&self, bootstrap: &str) -> Result<(), Unavailable> {
        self.run("add", bootstrap)
    }

    pub fn remove(&self, bootstrap: &str) -> Result<(), Unavailable> {
        self.run("remove", bootstrap)
    }

    fn run(&self, action: &str, bootstrap: &str) -> Result<(), Unavailable> {
        let mut python = Command::new(consumer::python()?);
        python.args(["-c", SCRIPT, action, bootstrap]);
        python.args([self.kind, self.name, self.user, self.operation, self.permission]);
        tools::run(&mut python).map(drop)
    }
}

/// Allows `user` everything.
pub fn allow_all(bootstrap: &str, user: &str) -> Result<(), Unavailable> {
    let kinds =
        [("BROKER", "kafka-cluster"), ("TOPIC", "*"), ("GROUP", "*"), ("TRANSACTIONAL_ID", "*")];
    kinds.into_iter().try_for_each(|(kind, name)| {
        Rule { kind, name, user, operation: "ALL", permission: "ALLOW" }.add(bootstrap)
    })
}

/// The configuration of a bridge that authenticates with the mechanism PLAIN and without TLS.
pub fn sasl_plaintext(user: &str, password: &str) -> String {
    format!(
        "[kafka.client]\nsecurity.protocol = \"SASL_PLAINTEXT\"\nsasl.mechanisms = \"PLAIN\"\n\
         sasl.username = \"{user}\"\nsasl.password = \"{password}\"\n"
    )
}
