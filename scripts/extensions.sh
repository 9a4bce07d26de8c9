# shellcheck shell=bash
# How a Postgres with PostGIS and pgvector is put together: the server of this Debian release with everything that PostGIS needs,
# from Debian packages that are unpacked and never installed, and pgvector, which this release does not have, compiled from the
# source that Debian keeps for a later one.
#
# Sourced by scripts/services, which owns the set (SET, STATE, CACHE). Only functions and constants here: sourcing it does
# nothing. It needs a Debian with this release of Postgres, gcc and no root.

# Of Debian 12; other releases have another one.
EXTENSIONS_POSTGRES=15
VECTOR_VERSION=0.8.0
VECTOR_SHA256=867a2c328d4928a5a9d6f052cd3bc78c7d60228a9b914ad32aa3db88e9de27b0
# In the pool of whichever mirror apt is told to use.
VECTOR_PATH=pool/main/p/pgvector/pgvector_$VECTOR_VERSION.orig.tar.gz

extensions_dir() {
    printf '%s/postgres-%s-postgis-pgvector-%s' "$CACHE" "$EXTENSIONS_POSTGRES" "$VECTOR_VERSION"
}

# install_extensions DIR: DIR/bin is as in the packages from npm.
install_extensions() {
    has apt-get || die "PostGIS comes from Debian packages, and this is no Debian"
    unpack_packages "$1"
    compile_pgvector "$1"
    wrap_binaries "$1"
    "$1/bin/postgres" --version
}

# unpack_packages DIR: the server, PostGIS, and whatever of their dependencies this machine lacks.
unpack_packages() {
    local version=$EXTENSIONS_POSTGRES names package
    names=(postgresql-"$version" postgresql-"$version"-postgis-3 postgresql-"$version"-postgis-3-scripts postgresql-server-dev-"$version")
    mapfile -t -O "${#names[@]}" names < <(lacking "${names[1]}")
    mkdir -- "$1/packages"
    # apt would download as a user of its own, which can't write to a directory of ours.
    (cd -- "$1/packages" && apt-get -q -o APT::Sandbox::User= download "${names[@]}")
    for package in "$1/packages"/*.deb; do
        dpkg-deb --extract "$package" "$1"
    done
    rm -r -- "$1/packages"
    # An installation chooses between versions of PostGIS here.
    for package in "$1/usr/share/postgresql/$version"/extension/postgis*-3.control; do
        ln -s -- "${package##*/}" "${package%-3.control}.control"
    done
}

# lacking PACKAGE: what an installation would bring, one name per line.
lacking() {
    apt-get install --print-uris -y --no-install-recommends "$1" | sed -n "s/^'[^']*' \([^_]*\)_.*/\1/p"
}

# mirror: where apt finds this release's packages.
mirror() {
    apt-get download --print-uris "postgresql-$EXTENSIONS_POSTGRES-postgis-3" | sed -n "s|^'\(.*\)/pool/.*|\1|p"
}

compile_pgvector() {
    local source=$1/pgvector extensions=$1/usr/share/postgresql/$EXTENSIONS_POSTGRES/extension mirror
    mirror=$(mirror)
    [ -n "$mirror" ] || die "apt knows no mirror of Debian" "apt-get update"
    /usr/lib/apt/apt-helper -o APT::Sandbox::User= download-file "$mirror/$VECTOR_PATH" "$source.tar.gz" "SHA256:$VECTOR_SHA256"
    mkdir -- "$source"
    tar -xzf "$source.tar.gz" -C "$source" --strip-components=1 --no-same-owner
    gcc -shared -fPIC -O2 -I "$1/usr/include/postgresql/$EXTENSIONS_POSTGRES/server" "$source"/src/*.c \
        -o "$1/usr/lib/postgresql/$EXTENSIONS_POSTGRES/lib/vector.so" -lm
    cp -- "$source/vector.control" "$source"/sql/vector--*.sql "$extensions/"
    cp -- "$source/sql/vector.sql" "$extensions/vector--$VECTOR_VERSION.sql"
    rm -r -- "$source" "$source.tar.gz"
}

# wrap_binaries DIR: the server finds its own files relative to itself, but not the libraries and the projections of PostGIS.
# The wrappers find themselves, because DIR is moved once it is complete.
wrap_binaries() {
    local name
    mkdir -- "$1/bin"
    for name in initdb pg_ctl postgres; do
        cat >"$1/bin/$name" <<TEXT
#!/bin/sh
root=\$(dirname -- "\$(dirname -- "\$0")")
libraries=\$root/usr/lib/$(uname -m)-linux-gnu
export LD_LIBRARY_PATH="\$libraries:\$libraries/blas:\$libraries/lapack:\$root/usr/lib"
export PROJ_LIB="\$root/usr/share/proj"
exec "\$root/usr/lib/postgresql/$EXTENSIONS_POSTGRES/bin/$name" "\$@"
TEXT
        chmod 755 "$1/bin/$name"
    done
}
