// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream/auth"
	"github.com/registry-cache/extension/pkg/contract"
)

// readCredentials returns a function that reads the credentials in two files in dir, so that a rotation needs no restart. It
// returns nil without a folder, and an error if the files are not readable now.
func readCredentials(dir, username, password string) (func() (auth.Credentials, error), error) {
	if dir == "" {
		return nil, nil
	}
	read := func() (auth.Credentials, error) {
		var values [2]string
		for i, file := range []string{username, password} {
			content, err := readFile(filepath.Join(dir, file))
			if err != nil {
				return auth.Credentials{}, fmt.Errorf("reading credentials: %w", err)
			}
			values[i] = contract.Credential(content)
		}
		return auth.Credentials{Username: values[0], Password: values[1]}, nil
	}
	_, err := read()
	return read, err
}

// proxyFunc returns the proxy for a request, nil for none, as http.Transport.Proxy does.
type proxyFunc func(*http.Request) (*url.URL, error)

// newProxyFunc returns a function for the proxies of the environment, with the credentials in dir. http.Transport sends them
// to the proxy only, and opens new connections for new credentials.
func newProxyFunc(dir string) (proxyFunc, error) {
	credentials, err := readCredentials(dir, contract.ProxyUsernameKey, contract.ProxyPasswordKey)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	if credentials == nil {
		return http.ProxyFromEnvironment, nil
	}
	return func(r *http.Request) (*url.URL, error) {
		address, err := http.ProxyFromEnvironment(r)
		if err != nil || address == nil {
			return nil, err
		}
		user, err := credentials()
		if err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
		withUser := *address
		withUser.User = url.UserPassword(user.Username, user.Password)
		return &withUser, nil
	}, nil
}
