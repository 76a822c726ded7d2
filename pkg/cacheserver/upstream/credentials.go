// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"fmt"
	"path/filepath"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream/auth"
	"github.com/registry-cache/extension/pkg/contract"
)

// readCredentials returns a function that reads the files "username" and "password" in dir, so that a rotation needs no
// restart. It returns nil without a folder, and an error if the files are not readable now.
func readCredentials(dir string) (func() (auth.Credentials, error), error) {
	if dir == "" {
		return nil, nil
	}
	read := func() (auth.Credentials, error) {
		var values [2]string
		for i, file := range []string{contract.UsernameKey, contract.PasswordKey} {
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
