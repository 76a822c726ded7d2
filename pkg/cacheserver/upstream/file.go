// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"fmt"
	"io"
	"os"
)

// maxFileSize is the maximum size of files with certificates or credentials, in bytes. Debian's bundle of all public CAs
// has 220 KiB.
const maxFileSize = 1 << 20

// readFile reads a file of at most maxFileSize bytes.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxFileSize {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxFileSize)
	}
	return content, nil
}
