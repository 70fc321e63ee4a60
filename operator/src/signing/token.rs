//! Whose token it is: the apiserver is asked (TokenReview).

use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use kube::Client;
use kube::api::{Api, PostParams};
use tonic::Status;
use weir_trust::Role;

use super::{AUDIENCE, ROLES};

/// What the apiserver says of a token that is bound to a pod.
const POD: &str = "authentication.kubernetes.io/pod-name";
const UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE: &str = "authentication.kubernetes.io/node-name";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Whom a token was made for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) namespace: String,
    pub(super) account: String,
    pub(super) pod: String,
    pub(super) uid: String,
    /// Not told by an apiserver before 1.30.
    pub(super) node: Option<String>,
}

impl Bearer {
    fn of(user: &UserInfo) -> Option<Self> {
        let account = user.username.as_deref()?.strip_prefix(SERVICE_ACCOUNT)?;
        let (namespace, account) = account.split_once(':')?;
        let extra = |key: &str| match user.extra.as_ref()?.get(key)?.as_slice() {
            [one] if !one.is_empty() => Some(one.clone()),
            _ => None,
        };
        Some(Self {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            pod: extra(POD)?,
            uid: extra(UID)?,
            node: extra(NODE),
        })
    }

    /// Fails unless pods with its service account may have certificates of a role.
    pub(super) fn may_be(&self, role: Role, namespace: &str) -> Result<(), Status> {
        let found = ROLES.iter().find(|(account, _)| *account == self.account);
        let may = found.filter(|_| self.namespace == namespace);
        match may {
            Some((_, may)) if *may == role => Ok(()),
            Some((account, may)) => Err(Status::permission_denied(format!(
                "pods with the service account {account} may have a certificate of role {may}, not of {role}"
            ))),
            None => Err(Status::permission_denied(format!(
                "the service account {}/{} is none of Weir's in {namespace}",
                self.namespace, self.account
            ))),
        }
    }
}

/// Asks the apiserver whose token it is.
pub(super) async fn review(client: &Client, token: &str) -> Result<Bearer, Status> {
    let reviews: Api<TokenReview> = Api::all(client.clone());
    let asked = TokenReview {
        spec: TokenReviewSpec {
            audiences: Some(vec![AUDIENCE.to_owned()]),
            token: Some(token.to_owned()),
        },
        ..TokenReview::default()
    };
    let answer = reviews.create(&PostParams::default(), &asked).await;
    let answer = answer.map_err(|error| {
        Status::unavailable(format!(
            "the apiserver does not say whose token it is: {error}"
        ))
    })?;
    judge(answer.status.unwrap_or_default())
}

fn judge(said: TokenReviewStatus) -> Result<Bearer, Status> {
    if said.authenticated != Some(true) {
        // It may have ended a moment ago, and kubelet has put another one into its place.
        let why = said.error.unwrap_or_default();
        return Err(Status::unauthenticated(format!(
            "the apiserver does not take the token for the audience {AUDIENCE}: {why}"
        )));
    }
    // An apiserver that knows no audiences says nothing of them.
    let is_ours = said
        .audiences
        .is_some_and(|audiences| audiences.iter().any(|audience| audience == AUDIENCE));
    if !is_ours {
        return Err(Status::permission_denied(format!(
            "the token is not for {AUDIENCE}: project one with this audience"
        )));
    }
    let user = said.user.unwrap_or_default();
    Bearer::of(&user).ok_or_else(|| {
        Status::permission_denied(format!(
            "the token of {} is not bound to a pod: use one that kubelet has projected",
            user.username.as_deref().unwrap_or("nobody")
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn judged(status: Value) -> Result<Bearer, String> {
        let status = serde_json::from_value(status).unwrap();
        judge(status).map_err(|status| status.message().to_owned())
    }

    fn said(user: &str, extra: Value, audiences: Value) -> Value {
        json!({
            "authenticated": true, "audiences": audiences,
            "user": { "username": user, "extra": extra },
        })
    }

    #[test]
    fn a_token_counts_that_is_for_the_operator_and_bound_to_a_pod() {
        let worker = "system:serviceaccount:weir-system:weir-worker";
        let bound = json!({ POD: ["w-1"], UID: ["u-1"], NODE: ["gpu-1"] });
        let ours = json!([AUDIENCE]);
        let bearer = judged(said(worker, bound.clone(), ours.clone())).unwrap();
        assert_eq!(
            (&*bearer.account, &*bearer.pod, bearer.node.as_deref()),
            ("weir-worker", "w-1", Some("gpu-1"))
        );
        bearer.may_be(Role::Worker, "weir-system").unwrap();
        let unbound = json!({ POD: ["w-1"] });
        let twice = json!({ POD: ["w-1", "w-2"], UID: ["u-1"] });
        for (status, part) in [
            (
                json!({ "authenticated": false, "error": "it has expired" }),
                "it has expired",
            ),
            (json!({}), "does not take the token"),
            (
                said(worker, bound.clone(), json!(["other"])),
                "not for weir-operator",
            ),
            (
                said(worker, bound.clone(), Value::Null),
                "not for weir-operator",
            ),
            (said(worker, unbound, ours.clone()), "not bound to a pod"),
            (said(worker, twice, ours.clone()), "not bound to a pod"),
            (said("ann", bound, ours), "not bound to a pod"),
        ] {
            let why = judged(status).unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn a_service_account_has_its_own_role_in_its_own_namespace() {
        let bearer = |namespace: &str, account: &str| Bearer {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            pod: "p".to_owned(),
            uid: "u".to_owned(),
            node: None,
        };
        let may = |namespace, account, role| {
            let may = bearer(namespace, account).may_be(role, "weir-system");
            may.map_err(|status| status.message().to_owned())
        };
        may("weir-system", "weir-plugin", Role::Mount).unwrap();
        may("weir-system", "weir-master", Role::Master).unwrap();
        let why = may("weir-system", "weir-plugin", Role::Worker).unwrap_err();
        assert!(why.contains("of role mount, not of worker"), "{why}");
        for (namespace, account) in [
            ("team-a", "weir-worker"),
            ("weir-system", "default"),
            ("weir-system", "weir-operator"),
        ] {
            let why = may(namespace, account, Role::Worker).unwrap_err();
            assert!(why.contains("none of Weir's"), "{why}");
        }
    }
}
