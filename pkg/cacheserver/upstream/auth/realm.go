// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// errRealm means that a challenge contains no URL of a token server that the client may contact. It does not quote the
// URL, which can contain anything.
var errRealm = errors.New("the upstream names a token server that cannot be used")

// parseRealm returns the URL of the token server in a challenge of the host.
func parseRealm(realm string, challenger origin) (*url.URL, error) {
	u, err := url.Parse(realm)
	if err != nil {
		return nil, errRealm
	}
	return u, checkTokenServer(u, challenger)
}

// checkTokenServer returns an error for a URL to which the client must not send requests, although a registry or a token
// server names it. containerd has no such rule; see docs/development/upstreams.md.
//
//   - http, if the challenge came by https: the credentials would be readable on the network.
//   - An IP address that is only valid inside of a network, for example of a cloud's metadata service: a registry could
//     make the cache send requests to services that only the cache can reach. If the address of the registry is such an
//     IP address, the token server may have one too, but never a link-local one.
func checkTokenServer(u *url.URL, challenger origin) error {
	server := originOf(u)
	switch {
	case server.host == "":
		return errRealm
	case server.scheme == "http" && challenger.scheme == "http", server.scheme == "https":
	default:
		return errRealm
	}
	if server.host == challenger.host {
		return nil
	}
	address, ok := parseIP(server.host)
	if !ok || isGlobal(address) {
		return nil
	}
	if registry, ok := parseIP(challenger.host); ok && !isGlobal(registry) && !address.IsLinkLocalUnicast() {
		return nil
	}
	return fmt.Errorf("%w: %s is an internal address", errRealm, address)
}

func parseIP(host string) (netip.Addr, bool) {
	address, err := netip.ParseAddr(host)
	return address.Unmap(), err == nil
}

// isGlobal reports whether an address is valid outside of a network.
func isGlobal(a netip.Addr) bool { return a.IsGlobalUnicast() && !a.IsPrivate() }

// origin is the scheme, host and port of a URL (RFC 6454, section 4). Two URLs with the same origin belong to the same
// server.
type origin struct{ scheme, host, port string }

func originOf(u *url.URL) origin {
	o := origin{strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()}
	if o.port == "" {
		o.port = map[string]string{"http": "80", "https": "443"}[o.scheme]
	}
	return o
}
