#!/usr/bin/env bash
# Writes the plain manifests from the chart: manifests.sh FILE
set -euo pipefail
cd "$(dirname "$0")/../.."
programs=$(KUBERNETES_PROGRAMS='' KUBERNETES_TOOLS=helm build-support/kubernetes/fetch.sh)
{
    cat <<'HEAD'
# Weir without Helm. Made from deploy/helm/weir by `make manifests`; docs/kubernetes.md says what is needed before it is applied.
HEAD
    "$programs/helm" template weir deploy/helm/weir --namespace weir-system --kube-version 1.34.2 --skip-tests --no-hooks \
        --set certificates.authoritySecret=weir-ca --set credentialsKeySecret=weir-credentials-key |
        grep -v -e '^# Source: ' -e 'app.kubernetes.io/instance: ' |
        # Helm adds the namespace when it installs.
        awk '
            /^kind: / {
                namespaced = $2 !~ /^(Namespace|CustomResourceDefinition|CSIDriver|PriorityClass|CachePool|Cluster.*|Validating.*|Mutating.*)$/
            }
            { print }
            /^metadata:$/ && namespaced { print "  namespace: weir-system" }'
} >"$1.new"
mv "$1.new" "$1"
