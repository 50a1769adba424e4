// tusd's handler with its file store and locks, as cmd/tusd puts them together without hooks, metrics and other
// stores. Usage: tusd PORT DIRECTORY
package main

import (
	"log"
	"net/http"
	"os"

	"github.com/tus/tusd/v2/pkg/filelocker"
	"github.com/tus/tusd/v2/pkg/filestore"
	"github.com/tus/tusd/v2/pkg/handler"
	"golang.org/x/exp/slog"
)

func main() {
	port, directory := os.Args[1], os.Args[2]
	composer := handler.NewStoreComposer()
	filestore.New(directory).UseIn(composer)
	filelocker.New(directory).UseIn(composer)
	files, err := handler.NewHandler(handler.Config{
		BasePath:      "/files/",
		StoreComposer: composer,
		Logger:        slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/files/", http.StripPrefix("/files/", files))
	log.Fatal(http.ListenAndServe("127.0.0.1:"+port, nil))
}
