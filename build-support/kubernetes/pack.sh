# Sourced: `pack` makes an image of one layer from a directory, as an archive that containerd imports.

# pack NAME OUT ROOT [ENTRYPOINT]
pack() {
    local name=$1 out=$2 root=$3 work layer config run
    if [ -n "${4-}" ]; then run="\"Entrypoint\":[\"$4\"]"; else run='"Cmd":["/bin/sh"]'; fi
    work=$(mktemp -d "$out.XXXXXX")
    tar --sort=name --numeric-owner --owner=0 --group=0 --mtime=@0 -C "$root" -cf "$work/layer.tar" .
    layer=$(sha256sum <"$work/layer.tar" | cut -c1-64)
    printf '{"architecture":"%s","os":"linux","config":{%s,"Env":["PATH=/usr/local/bin:/usr/bin:/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$(dpkg --print-architecture)" "$run" "$layer" >"$work/config"
    config=$(sha256sum <"$work/config" | cut -c1-64)
    mv "$work/config" "$work/$config.json"
    mv "$work/layer.tar" "$work/$layer.tar"
    printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["%s.tar"]}]' "$config" "$name" "$layer" >"$work/manifest.json"
    tar -C "$work" -cf "$work/image" manifest.json "$config.json" "$layer.tar"
    mv "$work/image" "$out"
    rm -rf "$work"
}
